"""What docs/clusters.md writes down parses, and every option in it exists."""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from conftest import write_run
from torch.distributed.run import get_args_parser
from transformers import TrainingArguments
from typer.testing import CliRunner

from usam.cli import app
from usam.training.run import read_run

TEXT = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


def options(parser):
    return {option for action in parser._actions for option in action.option_strings}


def test_run_files_take_the_arguments(tmp_path):
    (tree,) = [tree for tree in map(yaml.safe_load, blocks("yaml")) if "train" in tree]
    file = write_run(tmp_path)
    run = read_run(file, f"train={json.dumps(tree['train'])}")
    assert run.train["fsdp_config"] == tree["train"]["fsdp_config"]
    arguments = TrainingArguments(**tree["train"], output_dir=str(tmp_path), use_cpu=True)
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert (plugin.fsdp_version, plugin.transformer_cls_names_to_wrap) == (2, ["LlamaDecoderLayer"])
    assert plugin.reshard_after_forward
    assert not plugin.cpu_ram_efficient_loading


def test_accelerate_takes_its_file():
    (tree,) = [tree for tree in map(yaml.safe_load, blocks("yaml")) if "distributed_type" in tree]
    assert tree.keys() <= fields(ClusterConfig)
    assert {f"--{key}" for key in tree["fsdp_config"]} <= options(launch_command_parser())


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_files_are_found_beside_the_run_file(stage, tmp_path):
    (text,) = [text for text in blocks("json") if json.loads(text)["zero_optimization"]["stage"] == stage]
    file = write_run(tmp_path)
    (tmp_path / "zero.json").write_text(text)
    assert Path(read_run(file, "train.deepspeed=zero.json").train["deepspeed"]) == tmp_path / "zero.json"


@pytest.mark.parametrize("script", blocks("bash"), ids=range(len(blocks("bash"))))
def test_scripts_are_sound_and_their_options_exist(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in re.findall(r"torchrun .*", script.replace("\\\n", "")):
        words = shlex.split(line.split("&")[0])
        before, after = words[: words.index("-m")], words[words.index("usam.cli") + 1 :]
        assert {word for word in before if word.startswith("--")} <= options(get_args_parser())
        help_ = CliRunner().invoke(app, [after[0], "--help"], env={"COLUMNS": "200"}).output
        assert all(word in help_ for word in after[1:] if word.startswith("--"))
