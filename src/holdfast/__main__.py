"""`python -m holdfast`, for launchers that start modules: torchrun --nproc_per_node 2 -m holdfast anchor ..."""

from holdfast.cli import main

if __name__ == "__main__":
    main()
