"""States of frozen layers: computed once, they give every later pass the same logits and gradients."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import pytest
import torch

from modeling.encoding.packing import pack_sequences
from modeling.network.attention import choose_attention
from modeling.network.classifier import find_family
from modeling.network.frozen import (
    FrozenStates,
    count_frozen_layers,
    count_shared_layers,
    measure_states,
    replay_states,
    run_up_to,
)
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


def test_threads_replay_their_own_states_at_the_same_time():
    """While one thread replays states, another's forward of the same model computes its layers as usual."""
    torch.manual_seed(0)
    network = find_family("llama")(deepcopy(FAMILIES["llama"])).eval()
    choose_attention(network)
    layers = network.list_layers()
    packs = [pack_sequences(build_sequences()[first : first + 2]).to_batch() for first in range(4)]
    with torch.no_grad():
        expected = [network(**pack).logits for pack in packs]

    @torch.no_grad()
    def read(number: int) -> bool:
        """Whether a pack gets its own logits: every second one by replayed states."""
        pack, states = packs[number % 4], None
        if number % 2:
            states = run_up_to(layers[FROZEN - 1], network, pack)
        with replay_states(layers[:FROZEN], states):
            return torch.equal(network(**pack).logits, expected[number % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(80)))
    assert not any("forward" in vars(layer) for layer in layers)  # nothing is left behind


def test_models_share_layers_up_to_the_first_that_differs():
    torch.manual_seed(0)
    network = find_family("llama")(deepcopy(FAMILIES["llama"]))
    other = deepcopy(network)
    assert count_shared_layers([network, other]) == 0  # equal, but not the same memory
    other.load_state_dict(dict(network.named_parameters()), assign=True)
    assert count_shared_layers([network, other]) == 3
    other.list_layers()[1].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(1))
    assert count_shared_layers([network, other]) == 1
    assert count_shared_layers([network, network, other]) == 1
    other.set_input_embeddings(torch.nn.Embedding(3, 3))
    assert count_shared_layers([network, other]) == 0  # the same layers on other inputs


def test_a_trained_layer_is_not_frozen():
    torch.manual_seed(0)
    network = find_family("llama")(deepcopy(FAMILIES["llama"])).requires_grad_(False)
    assert count_frozen_layers(network.list_layers()) == 3
    network.list_layers()[1].mlp.up_proj.weight.requires_grad_(True)
    assert count_frozen_layers(network.list_layers()) == 1
