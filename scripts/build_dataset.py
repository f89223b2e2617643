"""The same as `lens-ssl build`."""

from lens_ssl_hf.commands.build import main

if __name__ == "__main__":
    main()
