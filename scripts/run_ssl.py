"""The same as `lens-ssl pretrain`, for `accelerate launch scripts/run_ssl.py`."""

from lens_ssl_hf.commands.pretrain import main

if __name__ == "__main__":
    main()
