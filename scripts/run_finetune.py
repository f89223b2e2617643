"""The same as `lens-ssl finetune`, for `accelerate launch scripts/run_finetune.py`."""

from lens_ssl_hf.commands.finetune import main

if __name__ == "__main__":
    main()
