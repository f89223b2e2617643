"""The same as `lens-ssl study`, for `accelerate launch scripts/run_study.py`."""

from lens_ssl_hf.commands.study import main

if __name__ == "__main__":
    main()
