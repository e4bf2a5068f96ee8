"""Flags come from the config dataclasses, by name, kind and default."""

from __future__ import annotations

import click
import pytest

from octavo.cli.app import _VERBS, main, octavo
from octavo.cli.flags import flags_of, parse_int
from octavo.cli.options import engine_config, engine_options
from octavo.cli.verbs import verb
from octavo.config import EngineConfig, groups


@pytest.fixture
def seen(monkeypatch):
    """A verb `probe` with all engine flags; the value collects the configs it was called with."""
    collected = []

    @verb("probe")
    @click.argument("model_name", required=False)
    @engine_options()
    @click.pass_context
    def probe(ctx, model_name, **_):
        """Probe."""
        collected.append(engine_config(ctx, model_name))

    monkeypatch.setattr(octavo, "get_command", lambda ctx, name: probe if name == "probe" else None)
    monkeypatch.setitem(_VERBS, "probe", ("", ""))
    return collected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("32K", 32768),
        ("32k", 32000),
        ("25.6k", 25600),
        ("4GiB", 4 << 30),
        ("4 GiB", 4 << 30),
        ("4GB", 4_000_000_000),
        ("1M", 1 << 20),
        ("1m", 1_000_000),
        ("1.5K", 1536),
        ("1_000", 1000),
        ("-1", -1),
        ("64kib", None),
        ("1.5", None),
        ("0.0001k", None),
        ("4iB", None),
        ("", None),
        ("ten", None),
        ("1e3", None),
        ("9" * 5000, None),
    ],
)
def test_integers_take_the_suffixes_people_write(text, value):
    if value is None:
        with pytest.raises(ValueError):
            parse_int(text)
    else:
        assert parse_int(text) == value


def test_nothing_given_means_the_defaults(seen):
    assert main(["probe"]) == 0
    assert seen == [EngineConfig()]


def test_every_field_can_be_set_by_its_flag(seen):
    examples = {"bool": None, "int": "3", "float": "0.5", "str": "text"}
    for name, group in groups(EngineConfig).items():
        for flag in flags_of(group):
            if flag.kind == "bool":
                arguments = [flag.option if not flag.default else f"--no-{flag.option[2:]}"]
            else:
                arguments = [flag.option, flag.choices[-1] if flag.choices else examples[flag.kind]]
            assert main(["probe", *arguments]) == 0, arguments
            value = getattr(getattr(seen.pop(), name), flag.name)
            assert value != flag.default, arguments
            assert type(value).__name__ == {"choice": "str"}.get(flag.kind, flag.kind)


def test_vllm_names_hold(seen):
    line = (
        "probe some/model --dtype float32 --max-model-len 4K --max-num-seqs 256 --max-num-batched-tokens 8192 "
        "--enforce-eager --no-enable-prefix-caching --gpu-memory-utilization 0.9 --block-size 32 --seed 0 "
        "--scheduling-policy priority --no-async-scheduling --load-format dummy --skip-tokenizer-init"
    )
    assert main(line.split()) == 0
    config = seen[0]
    assert config.model.model == "some/model"
    assert config.model.max_model_len == 4096
    assert config.device.enforce_eager is True
    assert config.cache.enable_prefix_caching is False
    assert config.scheduler.async_scheduling is False


def test_model_may_be_a_flag_but_not_two_models(seen, capsys):
    assert main(["probe", "--model", "a"]) == 0
    assert seen[0].model.model == "a"
    assert main(["probe", "a", "--model", "a"]) == 0
    assert main(["probe", "b", "--model", "a"]) == 2
    assert "Two models are named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-model-len", "0"], "--max-model-len cannot be 0"),
        (["--max-model-len", "many"], "not a number such as"),
        (["--dtype", "float8"], "float8"),
        (["--gpu-memory-utilization", "2"], "between 0.01 and 1.0"),
        (["--gpu-memory-utilization", "nan"], "between 0.01 and 1.0"),
        (["--block-size"], "requires an argument"),
    ],
)
def test_impossible_values_are_refused_by_flag(seen, arguments, words, capsys):
    assert main(["probe", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert seen == []


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_config_file_sets_options_by_either_spelling(seen, tmp_path):
    file = write(
        tmp_path / "o.yaml", "model: some/model\nmax-num-seqs: 7\nmax_model_len: 32K\nenable-prefix-caching: false\n"
    )
    assert main(["probe", "--config", file]) == 0
    config = seen[0]
    assert (config.model.model, config.scheduler.max_num_seqs, config.model.max_model_len) == ("some/model", 7, 32768)
    assert config.cache.enable_prefix_caching is False


def test_flags_go_before_the_file_and_the_file_before_defaults(seen, tmp_path):
    file = write(tmp_path / "o.yaml", "model: of-file\nmax-num-seqs: 7\nblock-size: 8\n")
    assert main(["probe", "of-line", "--max-num-seqs", "9", "--config", file]) == 0
    config = seen[0]
    assert (config.model.model, config.scheduler.max_num_seqs, config.cache.block_size) == ("of-line", 9, 8)
    assert config.cache.enable_prefix_caching is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-num-sequences: 3", "Did you mean 'max_num_seqs'?"),
        ("xyzzy: 3", "no option of this verb"),
        ("max-num-seqs: [1, 2", "not valid YAML"),
        ("- a\n- b", "as `name: value`"),
        ("max-num-seqs: 0", "--max-num-seqs cannot be 0"),
        ("dtype: float8", "float8"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("verbose: true", "no option of this verb"),
    ],
)
def test_a_wrong_config_file_is_refused(seen, text, words, tmp_path, capsys):
    assert main(["probe", "--config", write(tmp_path / "o.yaml", text)]) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in shown
    assert seen == []


def test_a_config_file_that_is_not_there(seen, capsys):
    assert main(["probe", "--config", "/nowhere.yaml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_an_empty_config_file_changes_nothing(seen, tmp_path):
    assert main(["probe", "--config", write(tmp_path / "o.yaml", "# nothing\n")]) == 0
    assert seen == [EngineConfig()]
