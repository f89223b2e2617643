"""The same as `lens-ssl push-space`."""

from lens_ssl_hf.commands.push_space import main

if __name__ == "__main__":
    main()
