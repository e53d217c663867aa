"""A runtime that is runc, but for what a test wants to happen before or after a sub-command."""

from __future__ import annotations

from pathlib import Path

# Ends the loop over the runtime's arguments; the values of its global flags are none of these.
ACTIONS = "create|start|exec|kill|update|delete|pause|resume|checkpoint|restore"


def fake_runtime(folder: Path, **hooks: str) -> Path:
    """A program in ``folder``; ``before_create="exit 1"`` is shell code, run in the bundle.

    After a sub-command its exit status is in ``$status``.
    """
    path = folder / "fake-runtime"
    path.write_text(
        "#!/bin/sh\n"
        f'for word; do case "$word" in {ACTIONS}) action="$word"; break;; esac; done\n'
        f"{_hooks('before', hooks)}"
        'runc "$@"; status=$?\n'
        f"{_hooks('after', hooks)}"
        "exit $status\n"
    )
    path.chmod(0o755)
    return path


def _hooks(when: str, hooks: dict[str, str]) -> str:
    found = {name: text for name, text in hooks.items() if name.startswith(f"{when}_")}
    cases = [f"{name.removeprefix(f'{when}_')}) {text};;\n" for name, text in found.items()]
    return f'case "$action" in\n{"".join(cases)}esac\n'


class Gate:
    """Where a runtime waits until it is let through; a hook is ``gate.text``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.text = f": >{folder}/reached.$$; while ! test -e {folder}/open; do sleep 0.02; done"

    def reached(self) -> int:
        """How many wait here, or did."""
        return len(list(self._folder.glob("reached.*")))

    def open(self) -> None:
        """Lets them through."""
        (self._folder / "open").touch()
