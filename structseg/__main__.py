"""`python -m structseg`."""

from structseg.command.main import main

__spec__ = None  # makes a spawned process import this file, and with it what `structseg/__init__.py` sets up

if __name__ == "__main__":
    main()
