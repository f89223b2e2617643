"""The same as `lens-ssl push`."""

from lens_ssl_hf.commands.push import main

if __name__ == "__main__":
    main()
