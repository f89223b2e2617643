"""The same as `lens-ssl push-dataset`."""

from lens_ssl_hf.commands.push_dataset import main

if __name__ == "__main__":
    main()
