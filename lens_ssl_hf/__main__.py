"""`python -m lens_ssl_hf` is the command `lens-ssl`."""

from .commands.main import main

if __name__ == "__main__":
    main()
