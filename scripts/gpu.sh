#!/usr/bin/env bash
# What a GPU that is at hand for some minutes is used for, in parts of less than 8 minutes:
#
#     scripts/gpu.sh check    # the tests that need a GPU
#     scripts/gpu.sh speed    # scripts/benchmark_gpu.py
#     scripts/gpu.sh study    # as many cells of the study on simulated cutouts as there is time for
#     scripts/gpu.sh batches  # DINO in batches of several sizes with as many images, by one rule of scaling, fine-tuned with
#                             # few labels; with BATCH_SAME=steps with as many steps
#     scripts/gpu.sh train    # a long pretraining, exported; classifiers from it and from scratch
#     scripts/gpu.sh real     # the study on five folds of TABLE (scripts/prepare_cfhtls.py), after that on simulated
#                             # cutouts; a backbone that has seen all of its windows but those of the test split
#
# With --rehearse the same code runs with tiny sizes on the CPU. Results and a log go to $OUT (gpu_results): at most 8
# files of at most 16 MiB. Datasets and runs lie in $WORK (/tmp/lens_ssl_gpu), where a part that was stopped goes on
# when it is started again.
#
# It needs Python 3.12 with torch, transformers, accelerate, pyarrow, pandas, scikit-learn, matplotlib, h5py and pytest.
# What such a machine often lacks can come along as wheels in .whl/, made where there is a package index:
#
#     pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 --dest .whl \
#         datasets dill multiprocess evaluate requests urllib3 charset-normalizer astropy pyerfa astropy-iers-data
#
# Results of the study and of the training come in pieces:
#
#     cat gpu_results/study.tar.gz.* | tar -xz -C runs/study     # whole: lens-ssl study goes on there and reports
#     cat gpu_results/unfinished.tar.gz.* | tar -xz -C report    # cells of pretrainings that are not all fine-tuned
#     cat gpu_results/real.tar.gz.* | tar -xz -C runs/real
#     cat gpu_results/batches.tar.gz.* | tar -xz -C runs         # batches32, batches128, ...: a study each
#     cat gpu_results/weights.tar.* | tar -x                     # FIRST_PIECE=4 brings those after the first four
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-} SECONDS=0
if [ "${2:-}" = --rehearse ]; then
    export LENS_SSL_REHEARSE=1 CUDA_VISIBLE_DEVICES=
    : "${WORKERS:=2}" "${BACKBONES:=vitt8}" "${TRAIN_BACKBONE:=vitt8}" "${LABELS:=16 all}" "${TRAIN_LABELS:=16}"
    : "${BATCHES:=16 32}" "${BATCH_LABELS:=16}" "${BATCH_SEEDS:=1}" "${BATCH_EPOCHS:=1}"
    : "${SEEDS:=1}" "${EPOCHS:=1}" "${STEPS:=2}" "${TRAIN_EPOCHS:=1}" "${BATCH:=32}"
    sizes="--train_size 48 --validation_size 24 --test_size 24"
    study_sizes="$sizes --unlabelled_size 48 --test_large_size 40" train_sizes="$sizes --unlabelled_size 48"
fi
: "${OUT:=gpu_results}" "${WORK:=/tmp/lens_ssl_gpu}" "${LIMIT:=460}"                          # all parts; seconds
: "${WORKERS:=6}" "${SEEDS:=3}" "${SUBSETS:=1}" "${LABELS:=100 300 600 1200 all}" "${BACKBONES:=vits8 vitb8}"
: "${METHODS:=supervised simsiam dino ibot}" "${EPOCHS:=20}" "${STEPS:=1800}" "${STUDY_SECONDS:=400}"       # study
: "${STUDY_WORKERS:=2}"
: "${RECIPES:=scripts/large_batches.yaml}" "${EXPORT:=}"                 # study; the pretraining whose weights are kept
: "${TABLE:=/tmp/cfhtls/cfhtls.csv}" "${REAL_METHODS:=supervised cnn dino-continued dino-continued-linear}"      # real
: "${REAL_EXPORT:=}" "${FOLDS:=0 1 2 3 4}"
: "${BATCHES:=32 128 512}" "${BATCH_BACKBONE:=vitt8}" "${BATCH_LABELS:=100 300}" "${BATCH_SEEDS:=2}"     # batches
: "${BATCH_EPOCHS:=10}" "${BATCH_SAME:=images}"  # or steps: epochs, those of batches of 32, grow with the batch
: "${TRAIN_METHOD:=dino}" "${TRAIN_BACKBONE:=vits8}" "${TRAIN_EPOCHS:=100}" "${BATCH:=512}" "${TRAIN_LABELS:=300}"
: "${CHECK_OPTIONS:=}" "${SPEED_OPTIONS:=}" "${TRAIN_OPTIONS:=}" "${FIRST_PIECE:=0}"  # of lens-ssl pretrain
: "${study_sizes:=--unlabelled_size 60000 --test_large_size 20000}" "${train_sizes:=--unlabelled_size 60000}"
mkdir -p "$OUT" "$WORK/site"
OUT=$(realpath "$OUT")
if [ -n "${LENS_SSL_REHEARSE:-}" ]; then
    sed "s/batch_size: [0-9]*/batch_size: 16/" "$RECIPES" > "$WORK/recipes.yaml"
    RECIPES=$WORK/recipes.yaml
fi
export PYTHONPATH=$WORK/site:$PWD TQDM_MININTERVAL=30 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} HF_HUB_OFFLINE=1

install_missing() {
    local wheels
    wheels=$(python3 - .whl/*.whl << 'END'
import importlib.util, sys
for wheel in sys.argv[1:]:
    module = wheel.split("/")[-1].split("-")[0].replace("pyerfa", "erfa")
    if "*" not in wheel and importlib.util.find_spec(module) is None:
        print(wheel)
END
    )
    [ -z "$wheels" ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$WORK/site" $wheels
}

left() { echo $((LIMIT > SECONDS ? LIMIT - SECONDS : 1)); }  # seconds

within() { timeout --foreground --kill-after=20 "$(left)" "$@"; }

stage() {  # NAME COMMAND...: run it, and say how long it took
    local name=$1 begun=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name: $((SECONDS - begun)) s"
}

lens_ssl() { within python3 -m lens_ssl_hf "$@"; }

background() {  # LOG ARGUMENTS...: of lens-ssl; a job of its own, which can be told to stop
    timeout --foreground --kill-after=20 "$(left)" python3 -m lens_ssl_hf "${@:2}" > "$1" 2>&1 &
}

wait_for_all() {
    local job
    for job in $(jobs -p); do wait "$job"; done
}

simulate() {  # FOLDER SIZES...: unless it is there
    local folder=$1
    shift
    [ -e "$folder" ] || lens_ssl build --dataset simulated --size 48 "$@" --cache_dir "$WORK/cache" --output "$folder"
}

# ---- study: a second process works on the host while the first computes; more of them only take turns on the GPU

run_study() {  # BACKBONE
    if [ $SECONDS -ge "$STUDY_SECONDS" ]; then return; fi
    share_cells study "$1" "$(planned_cells)" --dataset "$WORK/study_data" --methods $METHODS --backbones "$1" \
        --labels $LABELS --seeds "$SEEDS" --subsets "$SUBSETS" --epochs "$EPOCHS"
}

run_real() {
    local table="--dataset $TABLE --bands i r g --subclass_column kind --validation_fraction 0.2"
    METHODS=$REAL_METHODS LABELS=all
    share_cells real "${BACKBONES// /|}" "$(($(planned_cells) * $(wc -w <<< "$FOLDS")))" $table --folds $FOLDS --methods $METHODS \
        --backbones $BACKBONES --labels all --seeds "$SEEDS" --subsets "$SUBSETS" \
        ${LENS_SSL_REHEARSE:+--epochs 1} $([[ $METHODS != *continued* ]] || echo "--earlier_study $WORK/study")
    (cd "$WORK/real" && pack real study.json */*)
    if [ -n "$REAL_EXPORT" ]; then
        within python3 - "$RECIPES" dino-continued << 'END' > "$WORK/real.yaml"
import sys, yaml
print(yaml.safe_dump(yaml.safe_load(open(sys.argv[1]))[sys.argv[2]]))
END
        lens_ssl pretrain $table --config "$WORK/real.yaml" --resume auto --output_dir "$WORK/real-all" \
            --init "$WORK/study/pretrainings/$REAL_EXPORT" ${LENS_SSL_REHEARSE:+--epochs 1}
        export_pieces "$WORK/real-all" "$WORK/exported/lens-$REAL_EXPORT-cfhtls"
    fi
}

run_batches() {  # SIZE
    local recipe=$WORK/batches$1.yaml epochs=$BATCH_EPOCHS
    [ "$BATCH_SAME" = images ] || epochs=$((BATCH_EPOCHS * $1 / 32))
    within python3 - "$1" "$BATCH_SAME" << 'END' > "$recipe"
import sys
import yaml
sys.path.insert(0, "scripts")
from short_runs import scaled
size = int(sys.argv[1])
print(yaml.safe_dump({"dino": {"batch_size": size, **scaled("dino", size, sys.argv[2])}}))
END
    METHODS=dino LABELS=$BATCH_LABELS SEEDS=$BATCH_SEEDS RECIPES=$recipe
    share_cells "batches$1" "$BATCH_BACKBONE" "$(planned_cells)" --dataset "$WORK/study_data" --methods dino \
        --backbones "$BATCH_BACKBONE" --labels $LABELS --seeds "$SEEDS" --subsets "$SUBSETS" --epochs "$epochs"
}

share_cells() {  # FOLDER BACKBONES PLANNED OPTIONS...: until STUDY_SECONDS, or so many of the cells are done
    local worker folder=$1 backbones=$2 planned=$3
    shift 3
    for worker in $(seq "$STUDY_WORKERS"); do
        background "$WORK/$folder-worker$worker.log" study "$@" --output_dir "$WORK/$folder" --steps "$STEPS" \
            --precision bf16 --recipes "$RECIPES"
    done
    until [ $SECONDS -ge "$STUDY_SECONDS" ] || [ "$(done_cells)" -ge "$planned" ] || [ -z "$(jobs -r)" ]; do sleep 1; done
    kill $(jobs -p) 2> /dev/null || true  # a training saves a checkpoint first; the report is made elsewhere
    wait
    tail -n 2 "$WORK/$folder-worker"*.log
    echo "$folder, $backbones: $(done_cells) of $planned cells are done"
}

done_cells() {  # of METHODS and LABELS
    local cells="(${METHODS// /|})(-($backbones))?-seed[0-9]+(-labels(${LABELS// /|})-subset[0-9]+)?/cell.json"
    find "$WORK/$folder" -name cell.json 2> /dev/null | grep -cE "/(fold[0-9]+-)?$cells" || true
}

planned_cells() {
    local name own=$(($(wc -w <<< "$METHODS") * $(wc -w <<< "$LABELS") * SEEDS * SUBSETS))
    for name in $METHODS; do
        case $name in supervised* | cnn | *-linear) ;; *) own=$((own + SEEDS)) ;; esac
    done
    echo "$own"
}

# Weights stay behind. A pretraining that is not yet fine-tuned on all labels would need its own: it is made again by
# whoever goes on, with its cells, which are therefore packed apart.
pack_study() {
    local folder source whole=() unfinished=()
    cd "$WORK/study"
    for folder in pretrainings/* cells/*; do
        [ -e "$folder/cell.json" ] || continue
        source=$(basename "${folder%-labels*}")
        if [ -e "pretrainings/$source" ] &&
            [ "$(find cells -path "cells/$source-labels*/cell.json" | wc -l)" -lt $(($(wc -w <<< "$LABELS") * SUBSETS)) ]
        then unfinished+=("$folder"); else whole+=("$folder"); fi
    done
    pack study study.json "${whole[@]}"
    [ ${#unfinished[@]} = 0 ] || pack unfinished study.json "${unfinished[@]}"
    cd - > /dev/null
}

pack() {  # NAME PLACES...: files, and what is small in folders, in pieces
    local name=$1
    shift
    find "$@" -maxdepth 1 -type f \( -name "*.json" -o -name "*.jsonl" -o -name "predictions*.parquet" \) |
        tar -cz -T - | split -b 15M -d - "$OUT/$name.tar.gz."
}

# ---- train

run_train() {
    local folder=$WORK/$TRAIN_METHOD-$TRAIN_BACKBONE-$TRAIN_EPOCHS-$BATCH data=$WORK/train_data
    local backbone=$folder/lens-$TRAIN_METHOD-$TRAIN_BACKBONE
    if [ ! -d "$folder/pieces" ]; then
        stage pretrain lens_ssl pretrain --dataset "$data" --method "$TRAIN_METHOD" --backbone "$TRAIN_BACKBONE" \
            --epochs "$TRAIN_EPOCHS" --batch_size "$BATCH" --checkpoint_every 10 --resume auto $TRAIN_OPTIONS \
            --output_dir "$folder/ssl"
        stage export export_backbone
    fi
    find "$folder/pieces" -type f | sort | tail -n "+$((FIRST_PIECE + 1))" | head -n 4 | xargs -r cp -t "$OUT"
    echo "pieces of the weights: $(find "$folder/pieces" -type f | wc -l), from $FIRST_PIECE on, four at most, in $OUT"
    pack_results
    stage classifiers run_classifiers
    pack_results
}

pack_results() {
    (cd "$folder" && find ssl* scratch* -name "*.json*" -not -path "*/model/*" -o -name "*.parquet" | tar -cz -T -) \
        > "$OUT/results.tar.gz" 2> /dev/null || true
}

export_pieces() {  # RUN BACKBONE PREFIX: its weights, float16 on disk, as a folder and as pieces, by default in $OUT
    lens_ssl export "$1" "$2" --half yes
    tar -c -C "$(dirname "$2")" "$(basename "$2")" | split -b 15M -d - "${3:-$OUT/$(basename "$2").tar.}"
}

export_backbone() {
    rm -rf "$folder/pieces.partial"  # of a part that was stopped
    mkdir "$folder/pieces.partial"
    export_pieces "$folder/ssl" "$backbone" "$folder/pieces.partial/weights.tar."
    mv "$folder/pieces.partial" "$folder/pieces"
}

run_classifiers() {  # from the exported weights, and from scratch
    local seed run runs=()
    for seed in $(seq 0 $((SEEDS - 1))); do
        runs+=("$folder/ssl-$seed" "$folder/scratch-$seed")
        finetune "$folder/ssl-$seed" --init "$backbone"
        finetune "$folder/scratch-$seed" --backbone "$TRAIN_BACKBONE"
    done
    wait_for_all
    for run in "$folder/ssl" "${runs[@]}"; do background "$run.log" evaluate "$run" --dataset "$data"; done
    wait_for_all
    grep "^ROC AUC   " "$folder"/*.log
}

finetune() {  # RUN OPTIONS...
    background "$1.log" finetune --dataset "$data" --labels "$TRAIN_LABELS" --steps "$STEPS" --seed "${1##*-}" \
        --resume auto --output_dir "$@"
}

run_part() {
    trap 'echo "== $part: $SECONDS s in all, status $?"; kill $(jobs -p) 2> /dev/null || true' EXIT
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "no GPU"
    stage wheels install_missing
    case $part in
        check) stage check within python3 -m pytest -m gpu tests/test_gpu.py -q -p no:cacheprovider $CHECK_OPTIONS \
            --numprocesses "$WORKERS" --dist worksteal ;;
        speed) stage speed within python3 scripts/benchmark_gpu.py --output "$OUT/benchmark_gpu.json" \
            ${LENS_SSL_REHEARSE:+--tiny yes} $SPEED_OPTIONS ;;
        study)
            stage simulate simulate "$WORK/study_data" $study_sizes
            for backbone in $BACKBONES; do stage "study $backbone" run_study "$backbone"; done
            stage pack pack_study
            [ -z "$EXPORT" ] || stage export \
                export_pieces "$WORK/study/pretrainings/$EXPORT" "$WORK/exported/lens-${EXPORT%-seed*}" ;;
        batches)
            stage simulate simulate "$WORK/study_data" $study_sizes
            for size in $BATCHES; do stage "batches of $size" run_batches "$size"; done
            (cd "$WORK" && pack batches batches*/study.json batches*/*/*) ;;
        real) stage real run_real ;;
        train)
            stage simulate simulate "$WORK/train_data" $train_sizes
            run_train ;;
        *) echo "usage: scripts/gpu.sh check|speed|study|batches|train|real [--rehearse]" >&2; return 2 ;;
    esac
}

run_part 2>&1 | tee -a "$OUT/$part.log"
