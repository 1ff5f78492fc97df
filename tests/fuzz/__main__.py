"""`python -m fuzz TARGET`: repeat inputs of one target in this process."""

from fuzz.runner import main

if __name__ == "__main__":
    main()
