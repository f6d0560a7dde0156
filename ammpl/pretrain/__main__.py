"""Command line: ``python -m ammpl.pretrain --fonts DIR... --out DIR --steps 1800 --seed 0``."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch

from ammpl.model import tiny_glyph
from ammpl.pretrain.evaluate import pool_accuracy
from ammpl.pretrain.glyphs import build_glyphs, find_fonts
from ammpl.pretrain.train import TrainSettings, export, train, write_record

log = logging.getLogger("ammpl.pretrain")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(
        prog="python -m ammpl.pretrain", description="Pretrain the embedded tiny CLIP.", allow_abbrev=False
    )
    parser.add_argument("--fonts", nargs="+", type=Path, required=True, help="directories searched for font files")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, config, vocabulary and record")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimiser steps (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help="of images, captions and weights (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=defaults.batch, help="images a step (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Render, train, save, reload and measure on the pool of digits."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    settings = TrainSettings(steps=args.steps, seed=args.seed, batch=args.batch)
    glyphs = build_glyphs(find_fonts(args.fonts), settings.seed)
    log.info("%d glyphs from %d fonts of %d families", len(glyphs), glyphs.fonts, len(glyphs.families) - 1)
    start = time.monotonic()

    def report(step: int, losses: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        log.info("step %d/%d  %s  %.0f s", step, settings.steps, shown, time.monotonic() - start)

    model, tokenizer = train(glyphs, settings, report)
    minutes = (time.monotonic() - start) / 60
    export(model, tokenizer, args.out)
    accuracy = pool_accuracy(tiny_glyph.load(args.out), tokenizer).as_dict()
    write_record(args.out, settings, glyphs, {"minutes": round(minutes, 1), "zero_shot": accuracy})
    log.info("%.1f minutes; zero-shot on the digits' pool: %s", minutes, accuracy)


if __name__ == "__main__":
    main()
