"""
Make the README's picture from a contact sheet, of simulated cutouts.

```bash
python scripts/make_picture.py model_cards/lens-dino-vits8-classifier/contact_sheet.png docs/ranked_lenses.png
```
"""

from dataclasses import dataclass, field

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.errors import InputError, exit_on_input_error

WIDTH = 950  # pixels: readable on a page
COLOURS = 96  # a palette makes a sixth of the file


@dataclass
class Arguments:
    """The pictures."""

    sheet: str = field(metadata={"help": "The contact_sheet.png that evaluate wrote."})
    picture: str = field(metadata={"help": "The PNG to write."})


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__, positional=("sheet", "picture"))
    from PIL import Image

    try:
        with Image.open(arguments.sheet) as sheet:
            size = WIDTH, round(sheet.height * WIDTH / sheet.width)
            small = sheet.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.quantize(COLOURS).save(arguments.picture, optimize=True)
    except OSError as error:
        raise InputError(f"cannot make {arguments.picture} of {arguments.sheet} ({error}): run make demo") from error
    print(arguments.picture)


if __name__ == "__main__":
    main()
