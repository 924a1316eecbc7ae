"""`python -m wsizoo` is `wsizoo`."""

from wsizoo.cli import main

main()
