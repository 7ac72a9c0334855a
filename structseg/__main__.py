"""`python -m structseg`."""

from structseg.command.main import main

main()
