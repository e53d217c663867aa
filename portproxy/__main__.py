"""``python -m portproxy``."""

from portproxy.cli import main

if __name__ == "__main__":
    main()
