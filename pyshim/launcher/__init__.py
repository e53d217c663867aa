"""The program that containerd executes: native, and gone as soon as it has an answer."""
