"""Time each part of the experiment beside a plain script and Hugging Face's Llama: the same as `si_nb bench`, flags included."""
import sys

from si_nb.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
