"""
Publish a run on the Hub: weights, image processor, card with its numbers, pictures, recipe and metrics in one commit.

```bash
hf auth login                                                                      # once; or set HF_TOKEN
lens-ssl evaluate runs/dino-300 --dataset my_cutouts/                     # no model without numbers
lens-ssl push runs/dino --repo_id me/lens-dino-vits8
lens-ssl push runs/dino-300 --repo_id me/lens-dino-vits8-classifier --base_model me/lens-dino-vits8
lens-ssl push runs/dino --repo_id me/lens-dino-vits8 --dry_run     # only writes lens-dino-vits8/
lens-ssl push --all --dry_run published/                          # every model of model_cards/, under your account
```

A classifier goes to a repository whose name ends in -classifier, a backbone to another. A push that fails or is
interrupted leaves the Hub as it was and can be repeated; one without changes makes no commit.
"""

from dataclasses import dataclass, field

from ..errors import InputError, exit_on_input_error
from ..launch import one_process
from .parsing import parse
from .shared import PushArguments, quiet


@dataclass
class ModelArguments(PushArguments):
    run: str | None = field(
        default=None,
        metadata={
            "help": (
                "An evaluated run directory of lens-ssl pretrain or finetune; with all, a folder of exports, "
                "model_cards by default."
            ),
        },
    )
    repo_id: str = field(default="", metadata={"help": "The repository on the Hub, such as me/lens-dino-vits8."})
    all: bool = field(
        default=False, metadata={"help": "Publish every model that lens-ssl export wrote to folders of this folder."}
    )
    account: str | None = field(
        default=None, metadata={"help": "With all: a user or an organisation; by default whom the token belongs to."}
    )
    with_heads: bool = field(
        default=False, metadata={"help": "Also publish the SSL checkpoint with its heads, in pretraining/."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the backbone that a classifier was fine-tuned from, for the card."}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights, as the Hub names it; apache-2.0 where they are ours."},
    )


@exit_on_input_error
@one_process
def main() -> None:
    (arguments,) = parse(ModelArguments, description=__doc__, positional=("run",))
    from .. import push_all, push_to_hub

    quiet()
    options = vars(arguments)
    wants_all, account = options.pop("all"), options.pop("account")
    if wants_all:
        print(*push_all(arguments.run or "model_cards", account, arguments.private, arguments.dry_run), sep="\n")
    elif not arguments.run or not arguments.repo_id:
        missing = "--repo_id" if arguments.run else "run"
        raise InputError(f"{missing} is missing: see --help, or give --all for every model of a folder")
    else:
        print(push_to_hub(**options))


if __name__ == "__main__":
    main()
