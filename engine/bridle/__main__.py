"""`python -m bridle`."""

from bridle.cli import main

main()
