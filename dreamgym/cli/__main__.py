"""`python -m dreamgym.cli`: the command line if its script is not on the path."""

from dreamgym.cli.app import main

if __name__ == "__main__":
    main()
