"""scripts/run_ssl.py, with a record of the samples that each process saw in each step of its training."""

import json
import os
import runpy
from pathlib import Path

from lens_ssl_hf.data.samplers import ResidentImages

batch, seen = ResidentImages.batch, set()


def recorded(self, step, process, num_processes):
    images, indices, epoch = batch(self, step, process, num_processes)
    if step not in seen:
        seen.add(step)
        with open(os.environ["RECORD"], "a") as file:
            file.write(json.dumps([step, process, indices.tolist()]) + "\n")
    return images, indices, epoch


ResidentImages.batch = recorded
runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "run_ssl.py"), run_name="__main__")
