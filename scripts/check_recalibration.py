"""Will BatchNorm statistics of your traffic help? python scripts/check_recalibration.py --id cifar10 --traffic DIR"""

from pathlib import Path

from bnood.errors import run_door

LEGEND = """\
figures: under running statistics, under the traffic's, and the difference with its 95 % interval; AUROC tells ID
    images from traffic
layers: how far the traffic's means are from the running ones, in running standard deviations, and the log ratio of
    standard deviations (root mean squares over channels); id_: the same of half of the ID images, for comparison
stability: how far two estimates from n images each are apart, relative to the traffic's own shift; below 0.5, n images
    are enough to see it
"""


def main(arguments: list[str] | None = None) -> None:
    """Check one network on ID images and traffic, print the figures, end with the advice."""
    from eval_ood import add_network, chosen_network
    from jsonargparse import ArgumentParser

    from bnood.data.image_set import Images
    from bnood.data.sources import images, read_classes
    from bnood.evaluation.recalibration import check_recalibration
    from bnood.training.command_line import one_line_parsing

    parser = ArgumentParser(prog="scripts/check_recalibration.py", description=__doc__, exit_on_error=False)
    add_network(parser)
    for name, kind, default, text in (
        ("id", str, None, "ID images that the network was not trained on: a name, .npz file or folder."),
        ("traffic", str, None, "Images that the network meets, labels not needed."),
        ("ood", str | None, None, "What if the traffic held such images?"),
        ("ood_fraction", float, 0.1, "Which fraction of it."),
        ("count", int | None, None, "Use so many images of each set; all."),
        ("root", Path | None, None, "Folder of the data sets."),
        ("seed", int, 0, "Of the halves and the bootstrap."),
        ("workers", int, 0, "Processes that decode photographs."),
    ):
        required = name in ("id", "traffic")
        parser.add_argument(
            f"--{name}", type=kind, help=text, **({"required": True} if required else {"default": default})
        )
    with one_line_parsing(parser, arguments):
        config = parser.parse_args(arguments)
    network, size = chosen_network(config)

    def load(source: str) -> Images:
        return images(source, root=config.root, image_size=size).at_most(config.count, config.seed)

    found = check_recalibration(
        network,
        load(config.id),
        load(config.traffic),
        classes=None if config.classes is None else read_classes(config.classes),
        ood_set=None if config.ood is None else load(config.ood),
        ood_fraction=config.ood_fraction,
        seed=config.seed,
        workers=config.workers,
    )
    print(LEGEND, found, sep="\n")


if __name__ == "__main__":
    run_door(main)
