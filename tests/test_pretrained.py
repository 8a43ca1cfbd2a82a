"""Base models that begin with a saved Llama: the same function, one-line refusals, whole runs."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from si_nb.cli import main
from si_nb.loop.settings import NORMALIZATIONS, ConfigError, make_config, stored_config
from si_nb.model import gpt
from si_nb.model.gpt import GPT, ModelConfig
from si_nb.model.pretrained import pretrained_settings, symbol_tokens, take_over
from si_nb.problems.tokenizer import END, PAD, SYMBOLS
from si_nb.record.table import read_table

FACTS = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_size": 32, "intermediate_size": 40, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "vocab_size": 50,
    "eos_token_id": [2, 3], "pad_token_id": 0, "tie_word_embeddings": False, "hidden_act": "silu",
    "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32",
}  # fmt: skip
WORDS = ["<pad>", "<unk>", "</s>", "<end>", *(f"word{n}" for n in range(30)), *"+=9876543210abcd"]
PART = "self_attn.{}_proj self_attn.{}_proj self_attn.{}_proj self_attn.{}_proj".format(*"qkvo").split()
SMALL = ["--task", "copy", "--original_digits", "4", "--si_rounds", "1", "--base_samples", "600"]
SMALL += [
    "--si_iter",
    "3",
    "--num_samples",
    "20",
    "--eval_samples",
    "20",
    "--batch_size",
    "8",
    "--warmup",
    "0",
]
SMALL += ["--decay", "0", "--block_size", "40", "--voters", "2", "--vote_iter_growth", "0", "--device", "cpu"]


def shapes_of(facts):
    """Name and shape of every tensor."""
    width, inner = facts["hidden_size"], facts["intermediate_size"]
    shared = width * facts["num_key_value_heads"] // facts["num_attention_heads"]
    block = dict(zip(PART, [(width, width), (shared, width), (shared, width), (width, width)], strict=True))
    block |= {f"mlp.{part}_proj": (inner, width) for part in ("gate", "up")} | {
        "mlp.down_proj": (width, inner)
    }
    block |= {f"{part}_layernorm": (width,) for part in ("input", "post_attention")}
    layers = range(facts["num_hidden_layers"])
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in layers for name, shape in block.items()}
    whole = ("model.embed_tokens.weight", "lm_head.weight")
    return shapes | dict.fromkeys(whole, (facts["vocab_size"], width)) | {"model.norm.weight": (width,)}


def make_llama(folder, **changes):
    """A folder with a small random Llama."""
    facts, generator = {**FACTS, **changes}, torch.Generator().manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    weights = {
        name: torch.randn(shape, generator=generator) / 3 + (len(shape) == 1)
        for name, shape in shapes_of(facts).items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a small random Llama."""
    return make_llama(tmp_path_factory.mktemp("llama") / "saved")


def taken_over(folder):
    """Our model with its weights."""
    sizes = {"vocab_size": len(SYMBOLS), "block_size": 40, **pretrained_settings(folder)}
    model = GPT(ModelConfig(**sizes), torch.Generator()).eval()
    take_over(model, folder)
    return model


def test_logits_are_those_of_the_library(llama):
    """The same text has the same logits in Hugging Face's own Llama, where that library is installed."""
    transformers = pytest.importorskip("transformers", reason="needs the extra bench")
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    text = torch.randint(0, len(SYMBOLS), (3, 20), generator=torch.Generator().manual_seed(2))
    tokens = torch.tensor(symbol_tokens(llama, len(SYMBOLS)))
    with torch.inference_mode():
        logits = theirs(tokens[text]).logits[..., tokens]
        assert torch.allclose(taken_over(llama)(text), logits, atol=1e-4)


def test_symbols_are_found_by_name(llama):
    """Digits and marks by their word, the end by its number, of several ends the first."""
    tokens = symbol_tokens(llama, len(SYMBOLS) + 4)
    assert [WORDS[token] for token in tokens] == [*"0123456789+=", "</s>", "<pad>", *"abcd"]
    assert (tokens[END], tokens[PAD]) == (2, 0)


def test_words_may_be_pairs_with_a_score(llama, tmp_path):
    """Vocabularies of the unigram kind are lists; words added later stand beside them."""
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    pairs = [[word, 0.0] for word in WORDS[:-1]]
    added = [{"id": len(WORDS) - 1, "content": WORDS[-1]}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": pairs}, "added_tokens": added}))
    assert symbol_tokens(tmp_path, len(SYMBOLS) + 4) == symbol_tokens(llama, len(SYMBOLS) + 4)


def test_weights_in_several_files_and_a_tied_head(llama, tmp_path):
    """Shards are read by their index, and a head that is the embedding need not be there twice."""
    make_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    head = tensors.pop("lm_head.weight")
    names = sorted(tensors)
    index = {name: f"model-{1 + (name > names[8])}-of-2.safetensors" for name in names}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in names if index[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole, parts = taken_over(llama), taken_over(tmp_path)
    assert torch.equal(whole.blocks[1].down.weight, parts.blocks[1].down.weight)
    assert torch.equal(parts.head.weight, parts.embedding.weight) and len(head)


def test_old_and_new_ways_of_naming_the_base(tmp_path):
    """Later versions of the library write the base of the rotary encoding one level deeper."""
    older = pretrained_settings(make_llama(tmp_path / "older", rope_theta=77.0))
    rotary = {"rope_theta": 77.0, "rope_type": "default"}
    newer = pretrained_settings(make_llama(tmp_path / "newer", rope_theta=None, rope_parameters=rotary))
    assert older == newer and newer["rotary_base"] == 77


CANNOT = [
    ({"model_type": "gpt2"}, "of type 'gpt2'"),
    ({"attention_bias": True}, "has biases"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rescales positions"),
    ({"hidden_act": "gelu"}, "activation is 'gelu'"),
    ({"head_dim": 16}, "a width of their own"),
    ({"num_hidden_layers": "two"}, "does not say its num_hidden_layers, a number"),
    ({"hidden_size": None}, "does not say its hidden_size"),
    ({"num_attention_heads": 0}, "n_head is 0"),
    ({"rope_scaling": "linear"}, "rescales positions"),
]


@pytest.mark.parametrize("changes, told", CANNOT)
def test_what_cannot_be_taken_over_is_refused(tmp_path, changes, told):
    """One line with the reason, before anything is made."""
    (tmp_path / "config.json").write_text(json.dumps({**FACTS, **changes}))
    with pytest.raises(ConfigError, match=told) as refusal:
        make_config(pretrained=str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "written",
    [{}, {"model": []}, {"model": {"vocab": 5}}, {"model": {"vocab": [5]}}, {"model": {"vocab": {"0": "x"}}}],
)
def test_a_damaged_vocabulary_is_refused(llama, tmp_path, written):
    """One line, whatever the file holds."""
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="holds no vocabulary|has no '0' of its own"):
        symbol_tokens(tmp_path, len(SYMBOLS))


def test_damaged_folders_are_refused(llama, tmp_path):
    """Nothing there, no description, weights missing, of other shapes, or no safetensors."""
    with pytest.raises(ConfigError, match="has no config.json"):
        make_config(pretrained=str(tmp_path / "nowhere"))
    model, folder = taken_over(llama), make_llama(tmp_path / "other")
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no mapping"):
        pretrained_settings(folder)
    make_llama(folder, intermediate_size=24)
    with pytest.raises(ValueError, match="not those that config.json describes"):
        take_over(model, folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="cannot be read"):
        take_over(model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="save the model as safetensors"):
        take_over(model, folder)


def test_sizes_come_from_the_folder_and_must_agree(llama):
    """Sizes of a preset give way; a size that was given and differs is a mistake."""
    config = make_config("tiny", pretrained=str(llama))
    assert {name: getattr(config, name) for name in pretrained_settings(llama)} == pretrained_settings(llama)
    assert make_config(pretrained=str(llama), n_embd=32).n_embd == 32
    with pytest.raises(ConfigError, match="n_embd is 64, but .* has 32; leave it out"):
        make_config(pretrained=str(llama), n_embd=64)
    assert stored_config(asdict(config)) == config
    assert tuple(gpt.NORMALIZATIONS) == NORMALIZATIONS


def test_a_run_begins_with_it(llama, tmp_path, capsys):
    """From the command line: base models hold its weights but for the training, and the run is whole."""
    place = [
        "--pretrained",
        str(llama),
        "--run_dir",
        str(tmp_path / "run"),
        "--models_dir",
        str(tmp_path / "m"),
    ]
    given = [*SMALL, "--si_method", "none,mv", "--max_iters", "1", "--learning_rate", "1e-7"]
    assert main(["run", *given, *place]) == 0, capsys.readouterr()
    stored = load_file(next((tmp_path / "m").rglob("voter_1.safetensors")))
    for name, weight in taken_over(llama).state_dict().items():
        assert torch.allclose(stored[name], weight, atol=1e-5), name
    assert main(["check", str(tmp_path / "run")]) == 0
    table = read_table(tmp_path / "run")
    assert set(table["arm"]) == {"none", "mv"} and table["round"].max() == 1
    assert main(["run", *given, *place]) == 0 and np.array_equal(read_table(tmp_path / "run"), table)


def test_the_folder_is_needed_no_longer_than_until_base_models_are_there(tmp_path, capsys):
    """A finished base model stands for itself; without one, a folder that is gone is one line."""
    folder = make_llama(tmp_path / "llama")
    given = [
        "run",
        *SMALL,
        "--max_iters",
        "2",
        "--pretrained",
        str(folder),
        "--models_dir",
        str(tmp_path / "m"),
    ]
    assert main([*given, "--skip_si", "--run_dir", str(tmp_path / "one")]) == 0
    (folder / "model.safetensors").unlink()
    assert main([*given, "--run_dir", str(tmp_path / "two")]) == 0
    capsys.readouterr()
    assert main([*given, "--seed", "5", "--run_dir", str(tmp_path / "three")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "has no model.safetensors" in said[-1]
