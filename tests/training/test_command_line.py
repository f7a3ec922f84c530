"""Configs are read strictly, and as dotted keys. What is refused: ``tests/bad_rows.py``."""

from pathlib import Path

from bnood.training.command_line import read_configs, read_yaml


def test_configs_are_read_with_dotted_keys(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("a: {b: {c: 1}}\nd: null\ne: ''")
    expected = {config: {"a": {"b": {"c": 1}}, "a.b": {"c": 1}, "a.b.c": 1, "d": None, "e": ""}}
    assert read_configs(["--config", str(config), "--x"]) == expected
    assert read_configs([f"--config={config}"]) == expected
    assert read_configs([]) == {}
    assert read_yaml(config) == {"a": {"b": {"c": 1}}, "d": None, "e": ""}
