"""
Write the tables of README.md and docs/ from the files in model_cards/results.

```bash
python scripts/make_tables.py
python scripts/make_tables.py --reports
```

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`. It is made from what a study wrote to
model_cards/results/NAME/results.json, or scripts/benchmark.py, scripts/search_recipes.py or scripts/demo.py to
model_cards/results/NAME.json. The table `summary` takes a few rows of two studies. `--reports` first makes the
table.md, table.tex and pictures of every study again, and, where predictions.parquet is there, its statistics and the
pictures of scores.
"""

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import labelled_simulations
import real_sky
import short_runs

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.files import write_json
from lens_ssl_hf.study.cells import PREDICTIONS, unpack_cells
from lens_ssl_hf.study.ensembles import ensembles
from lens_ssl_hf.study.methods import METHOD_NAMES
from lens_ssl_hf.study.report import draw_pictures
from lens_ssl_hf.study.statistics import compare
from lens_ssl_hf.study.tables import as_markdown, format_interval, markdown_table, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "model_cards" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What sets an older simulator apart from today's; no table of version 1 is left.
OLD_SIMULATORS = {"2": "its depth is 0.45 mag shallower than version 3's and than it says"}
# The columns of the short table, and its rows: a study, the pretraining that stands for it, and its label budgets.
SUMMARY_METHODS = {
    "supervised": "ViT from scratch",
    "supervised-long": "the same, equal compute",
    "{}": "pretrained, fine-tuned",
    "{}-linear": "pretrained, frozen",
    "cnn": "small CNN from scratch",
}
SUMMARY_ROWS = {
    "simulated_vits8": ("simulated; ViT-S/8, DINO", "dino", ("100", "300", "all")),
    "simulated": ("simulated; ViT-Ti/8, iBOT", "ibot", ("100", "300", "all")),
    "cfhtls": ("real, CFHTLS; ViT-Ti/8, iBOT", "ibot", ("all",)),
}


def speed_table(results: dict) -> str:
    """What scripts/benchmark.py wrote, as Markdown."""
    ways = ("usual", "usual, bf16 and fused AdamW", "floor")
    lines = [["training", "images/s", *(f"x {way}" for way in ways)], ["---"] * 5]
    for row in [*results["pretrain"]["rows"], *results["finetune"]["rows"]]:
        name = f"{METHOD_NAMES[row['method']]} pretraining" if "method" in row else "fine-tuning"
        ratios = [f"{row['ours_over'][way]:.2f}" if way in row["ours_over"] else "" for way in ways]
        rate = f"{row['images_per_second']['ours']['median']:.0f}"
        lines.append([f"{name}, {row['backbone']}, {row['precision']}", rate, *ratios])
    machine, asked = results["machine"], results["pretrain"]
    size = results["memory"]
    text = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}; pretraining with batch "
        f"{asked['batch_size']} and 2 + {asked['num_local_views']} views (simsiam 2). Peak memory of DINO with vitb8, "
        f"batch 256, 2 + 4 views: {size['peak_bytes'] / 2**30:.1f} GiB."
    )
    levers = [["lever", "predicted", "measured"], ["---"] * 3]
    for row in results["levers"]["rows"]:
        levers.append([row["lever"], f"{row['predicted']:.2f}", f"{row['measured']:.2f}"])
    return f"{as_markdown(lines)}\n\n{text}\n\n{as_markdown(levers)}"


def gpu_table(results: dict) -> str:
    """What scripts/benchmark_gpu.py wrote, as Markdown."""
    usual = {row["backbone"]: row["images_per_second"] for row in results["usual"]["rows"] if "error" not in row}
    lines = [["pretraining", "batch", "images/s", "x usual, fp32", "of the peak", "memory"], ["---"] * 6]
    for row in results["pretrain"]["rows"]:
        rate, name = row["images_per_second"], f"{METHOD_NAMES[row['method']]}, {row['backbone']}"
        ratio = f"{rate / usual[row['backbone']]:.0f}" if row["method"] == "dino" and row["backbone"] in usual else ""
        share, memory = f"{row['model_flop_utilisation']:.0%}", f"{row['peak_bytes'] / 2**30:.1f} GiB"
        lines.append([name, str(row["batch_size"]), f"{rate:,.0f}", ratio, share, memory])
    machine = results["machine"]
    text = (
        f"{machine['device']}, torch {machine['torch']}, bf16; 2 + 8 views (SimSiam 2). The usual way has batches of "
        f"{results['usual']['rows'][0]['batch_size']} and {machine['cores']} worker processes. The peak is that of "
        f"one large matrix product, {machine['bf16_flops'] / 1e12:.0f} TFLOP/s."
    )
    levers = [["lever", "attention", "batch", "predicted", "measured"], ["---"] * 5]
    for row in results["levers"]["rows"]:
        numbers = [str(row["batch_size"]), f"{row['predicted']:.2f}", f"{row['measured']:.2f}"]
        levers.append([row["lever"], row["attention"], *numbers])
    rates = [["fine-tuning", "processes", "steps/s, batches of 64"], ["---"] * 3]
    for row in results["finetune"]["rows"]:
        rates.append([row["backbone"], str(row["processes"]), f"{row['steps_per_second']:.0f}"])
    rows = results["scoring"]["rows"]
    kinds = list(dict.fromkeys(row["precision"] for row in rows))
    scored = [["scoring, cutouts/s", *kinds], ["---"] * (1 + len(kinds))]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        found = {row["precision"]: row["cutouts_per_second"] for row in rows if row["backbone"] == backbone}
        scored.append([backbone, *(f"{found[kind]:,.0f}" for kind in kinds)])
    return "\n\n".join([as_markdown(lines), text, *map(as_markdown, (levers, rates, scored))])


def scoring_table(results: dict) -> str:
    """What scripts/benchmark.py --parts scoring wrote, as Markdown, and what it means for surveys."""
    measured = {cores: results["scoring"][f"{cores}_cores"] for cores in (1, 2)}
    names = {"parquet": "Parquet", "files": "FITS files", "one_file_at_a_time": "FITS files, one at a time"}
    lines = [["cutouts/s", "one core", "two cores"], ["---"] * 3]
    for key, title in names.items():
        lines.append([title, *(f"{one[key]:.0f}" for one in measured.values())])
    for kind, title in (("parquet", "Parquet, read alone"), ("files", "FITS files, read alone")):
        lines.append([title, *(f"{one['read_alone'][kind]:,.0f}" for one in measured.values())])
    gpu = json.loads((RESULTS / "benchmark_gpu.json").read_text())["scoring"]["rows"]
    forward = {row["precision"]: row["cutouts_per_second"] for row in gpu if row["backbone"] == "vits8"}
    rates = {"from Parquet on two cores": measured[2]["parquet"]}
    rates |= {"the forward on an H100, fp32": forward["fp32"], "bf16": forward["bf16, few tokens"]}
    costs = [["cutouts", *rates, "as float32, 48 x 48 pixels of 3 bands"], ["---"] * (2 + len(rates))]
    for power in (6, 8, 9):
        size = 3 * 48 * 48 * 4 * 10**power  # bytes, at the size of the models' cutouts
        disk = f"{size / 1e12:.1f} TB" if size > 1e12 else f"{size / 1e9:.0f} GB"
        costs.append([f"10^{power}", *(_duration(10**power / rate) for rate in rates.values()), disk])
    machine = results["machine"]
    text = f"lens-dino-vits8-classifier, {machine['device']}, torch {machine['torch']}."
    return "\n\n".join([as_markdown(lines), text, _engines(measured), as_markdown(costs)])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def _engines(measured: dict[int, dict]) -> str:
    """The forward by several engines, as Markdown."""
    lines = [["the forward alone", "one core", "two cores", "AUC", "changes a score by"], ["---"] * 5]
    for name, one in measured[1]["engines"].items():
        rates = (f"{found['engines'][name]['cutouts_per_second']:.0f}" for found in measured.values())
        lines.append(
            [
                name,
                *rates,
                f"{one['roc_auc']:.4f}",
                f"{one['changes_a_score_by']:.0e}" if one["changes_a_score_by"] else "",
            ]
        )
    return as_markdown(lines)


def survey_table(results: dict) -> str:
    """What scripts/simulated_survey.py counted, as Markdown."""
    first = results["first"]
    lines = [["ranked by", *(f"lenses in the first {number:,}" for number in first)], ["---"] * (1 + len(first))]
    lines += [[name, *map(str, found)] for name, found in results["lenses_among_the_first"].items()]
    share = results["lenses"] / results["cutouts"]
    lines.append(["random order, on average", *(f"{number * share:g}" for number in first)])
    return f"{as_markdown(lines)}\n\n{results['cutouts']:,} simulated cutouts, {results['lenses']} of them lenses."


def sky_table(results: dict) -> str:
    """What scripts/second_sky.py measured, as Markdown."""
    kinds = list(next(iter(results["roc_auc"].values()))[0]["against"])
    lines = [["on the second sky", "ROC AUC", *(f"against {kind}" for kind in kinds)], ["---"] * (2 + len(kinds))]
    for way, found in results["roc_auc"].items():
        values = [one["value"] for one in found]
        total = f"{fmean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")
        lines.append([way, total, *(f"{fmean(one['against'][kind] for one in found):.3f}" for kind in kinds)])
    text = (
        f"{results['test']:,} test cutouts, half of them lenses; {results['steps']} steps of fine-tuning. In brackets "
    )
    seeds = max(map(len, results["roc_auc"].values()))
    return f"{as_markdown(lines)}\n\n{text}the range over {seeds} label subsets, each with a seed of its own."


def trials_table(log: list[dict]) -> str:
    """How many recipes scripts/search_recipes.py tried per method, and the best with 100 and with 300 labels."""
    head = ["method", "trials", "best with 100 labels", "AUC (subsets)", "best with 300 labels", "AUC (subsets)"]
    lines = [head, ["---"] * len(head)]
    for method, title in METHOD_NAMES.items():
        own = [trial for trial in log if trial["method"] == method]
        if not own:
            continue
        cells = [title, str(len(own))]
        for budget in ("100", "300"):
            scored = [
                (one["validation_auc"][budget], one["name"]) for one in own if budget in one.get("validation_auc", {})
            ]
            found, name = max(scored, key=lambda one: fmean(one[0]), default=([], ""))
            cells += [name, f"{fmean(found):.3f} ({len(found)})"] if found else ["", ""]
        lines.append(cells)
    return as_markdown(lines)


def study_table(results: dict) -> str:
    """What lens-ssl study wrote, as Markdown, and which simulator made the cutouts of tests or pretrainings."""
    earlier = (one["continued_from"] for one in results["pretraining"] if "continued_from" in one)
    versions = {one.get("simulator_version") for one in (results["data"], *earlier)} - {None}
    notes = [
        f"Simulator version {version}" + (f": {OLD_SIMULATORS[version]}." if version in OLD_SIMULATORS else ".")
        for version in sorted(versions)
    ]
    return "\n\n".join([markdown_table(results), *notes])


def summary_table() -> str:
    """A few ROC AUCs of the studies on simulated and on real cutouts, side by side."""
    lines = [["cutouts", "labels", *SUMMARY_METHODS.values()], ["---"] * (2 + len(SUMMARY_METHODS))]
    note = "ROC AUC with 95 % intervals, and seeds x label subsets. Round brackets: over the test set alone."
    steps, equal_compute = set(), ""
    for study, (title, ssl, budgets) in SUMMARY_ROWS.items():
        results = json.loads((RESULTS / study / "results.json").read_text())
        if version := results["data"].get("simulator_version"):
            note += f" {title.split('; ')[-1]}: simulator version {version}."
        steps |= {one["settings"]["steps"] for one in results["finetuning"] if one["method"] in (ssl, "supervised")}
        for budget in budgets:
            found = {row["method"]: row for row in results["rows"] if row["labels"] == budget}
            if gain := found[ssl]["roc_auc"]["minus"].get("supervised-long"):
                equal_compute += (
                    f" At equal compute, on the same {budget} labels, {title.split('; ')[-1]}, fine-tuned, has "
                )
                equal_compute += f"{format_interval(gain, signed=True)} compared with the ViT from scratch."
            labels = f"all ({found['supervised']['num_labels']:,})" if budget == "all" else budget
            lines.append([title, labels, *(_auc(found.get(method.format(ssl))) for method in SUMMARY_METHODS)])
    note += f" Fine-tunings have {', '.join(f'{one:,}' for one in sorted(steps))} steps, and more at equal compute."
    return f"{as_markdown(lines)}\n\n{note}{equal_compute}"


def _auc(row: dict | None) -> str:
    return "" if row is None else f"{format_interval(row['roc_auc'])}; {row['seeds']} x {row['subsets']}"


def demo_line(needs: dict) -> str:
    """What scripts/demo.py took, as it wrote to demo/needs.json."""
    return (
        f"Measured: {needs['minutes']} minutes, {needs['memory_gib']} GiB of memory and {needs['disk_mb']} MB of disk "
        f"({needs['machine']}, torch {needs['torch']})."
    )


def make(name: str) -> str:
    """The table of this name."""
    if name == "summary":
        return summary_table()
    if (RESULTS / name / "results.json").is_file():
        return study_table(json.loads((RESULTS / name / "results.json").read_text()))
    kinds = {"trials": trials_table, "demo": demo_line, "benchmark_gpu": gpu_table, "benchmark_scoring": scoring_table}
    kinds |= {"simulated_survey": survey_table, "second_sky": sky_table}
    kinds |= {"short_runs": short_runs.results_table, "labelled_simulations": labelled_simulations.results_table}
    kinds["real_sky"] = real_sky.results_table
    return kinds.get(name, speed_table)(json.loads((RESULTS / f"{name}.json").read_text()))


def fill(text: str) -> str:
    """`text` with every table made again."""
    return re.sub(
        r"<!-- table: (\w+) -->.*?<!-- end table -->",
        lambda match: f"<!-- table: {match[1]} -->\n{make(match[1])}\n<!-- end table -->",
        text,
        flags=re.DOTALL,
    )


def _with_completeness(rows: list[dict], earlier: list[dict]) -> list[dict]:
    """Rows with the completeness of earlier ones: these knew scores of the large test split, which no report keeps."""
    known = {(row["method"], row["backbone"], row["labels"]): row.get("completeness_at_fpr_1e-3") for row in earlier}
    for row in rows:
        if (entry := known.get((row["method"], row["backbone"], row["labels"]))) is not None:
            row["completeness_at_fpr_1e-3"] = entry
    return rows


def make_report(study: Path) -> None:
    """The statistics of a study, from its predictions where they are there, its tables and pictures, again."""
    results = json.loads((study / "results.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        records = unpack_cells(study, folder) if (study / PREDICTIONS).is_file() else []
        cells = [record for record in records if record["labels"] != "none"]
        if cells:
            results |= {"rows": _with_completeness(compare(cells), results["rows"]), "ensembles": ensembles(cells)}
            write_json(study / "results.json", results)
        write_tables(results, study)
        draw_pictures(results, cells, study)


@dataclass
class Arguments:
    reports: bool = field(default=False, metadata={"help": "Make every study's statistics and pictures again, too."})


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    if arguments.reports:
        for results in sorted(RESULTS.glob("*/results.json")):
            make_report(results.parent)
    for page in PAGES:
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    main()
