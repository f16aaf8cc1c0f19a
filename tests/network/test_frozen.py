"""States of frozen layers: computed once, they give every later pass the same logits and gradients."""

from copy import deepcopy
from functools import partial

import pytest
import torch

from modeling.encoding.packing import pack_sequences
from modeling.network.attention import choose_attention
from modeling.network.classifier import find_family
from modeling.network.frozen import FrozenStates, count_frozen_layers, measure_states
from modeling.network.lora import add_adapters
from tests.network.test_attention import FAMILIES, build_sequences

FROZEN = 2


def _note(ran: list, *_: object) -> None:
    ran.append(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_states_give_the_same_logits_and_gradients(family, tmp_path):
    """In other packs than those they were computed in, for all families; sliding windows cross the frozen layers."""
    torch.manual_seed(0)
    config = deepcopy(FAMILIES[family])
    network = find_family(config.model_type)(config).eval()
    choose_attention(network)
    model = add_adapters(network, r=4, alpha=8, dropout=0.0, freeze_layers=FROZEN)
    torch.nn.init.normal_(network.list_layers()[FROZEN].self_attn.q_proj.lora_B["default"].weight)
    assert count_frozen_layers(network.list_layers()) == FROZEN
    sequences = build_sequences()
    states = FrozenStates(tmp_path / "states.npy", sequences, config.hidden_size)
    states.compute(network, network.list_layers()[FROZEN - 1], [[4, 0, 3], [1, 2]])
    assert states.states.nbytes == measure_states(sum(map(len, sequences)), config.hidden_size)
    network.num_frozen_layers = FROZEN
    rows = [0, 2, 1, 3, 4]
    pack = pack_sequences([sequences[row] for row in rows])
    found = {}
    for name, more in (("plain", {}), ("replayed", {"frozen_states": states.gather(pack, rows)})):
        model.zero_grad()
        ran: list[int] = []
        hooks = [layer.mlp.register_forward_hook(partial(_note, ran)) for layer in network.list_layers()]
        output = model(**pack.to_batch(), labels=torch.tensor([[1.0, 0.0]] * len(rows)), **more)
        output.loss.backward()
        for hook in hooks:
            hook.remove()
        trained = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        found[name] = output.logits.detach(), trained, len(ran)
    (logits, gradients, layers), (again, same, fewer) = found["plain"], found["replayed"]
    assert layers == 3 and fewer == 1  # the frozen layers did not run
    assert (logits - again).abs().max() < 1e-5
    assert all((gradients[name] - same[name]).abs().max() < 1e-5 for name in gradients)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())


def test_a_trained_layer_is_not_frozen():
    torch.manual_seed(0)
    network = find_family("llama")(deepcopy(FAMILIES["llama"])).requires_grad_(False)
    assert count_frozen_layers(network.list_layers()) == 3
    network.list_layers()[1].mlp.up_proj.weight.requires_grad_(True)
    assert count_frozen_layers(network.list_layers()) == 1
