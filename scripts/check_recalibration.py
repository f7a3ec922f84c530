"""Will BatchNorm statistics of your traffic help? python scripts/check_recalibration.py --id cifar10 --traffic DIR"""

from pathlib import Path

from bnood.errors import run_door


def main(arguments: list[str] | None = None) -> None:
    """Check one network on ID images and traffic, print the figures, end with the advice."""
    from jsonargparse import ArgumentParser

    from bnood.data.image_set import Images
    from bnood.data.sources import images, read_classes
    from bnood.evaluation.cli import add_network, chosen_network
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
    print(found)


if __name__ == "__main__":
    run_door(main)
