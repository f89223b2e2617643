"""The same as `lens-ssl export`."""

from lens_ssl_hf.commands.export import main

if __name__ == "__main__":
    main()
