"""The same as `lens-ssl evaluate`."""

from lens_ssl_hf.commands.evaluate import main

if __name__ == "__main__":
    main()
