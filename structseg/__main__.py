"""`python -m structseg`."""

from structseg.command.main import main

__spec__ = None  # then a process that is spawned imports this file, and by it what `structseg/__init__.py` sets up

if __name__ == "__main__":
    main()
