import random

import numpy as np
import torch

from mmdge.safe_training import (
    get_random_states,
    read_checkpoint,
    set_random_states,
)


def draw():
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(2).tolist(),
    )


def test_what_follows_is_drawn_again(tmp_path):
    draw()  # leaves one half of a pair of Gaussians
    states = get_random_states()
    expected = [draw() for _ in range(3)]
    assert [draw() for _ in range(3)] != expected
    set_random_states(states)
    assert [draw() for _ in range(3)] == expected
    # Through a file, which is read without running code.
    torch.save(dict(w=torch.zeros(1), states=[states]), tmp_path / 'a.pth')
    (loaded,) = read_checkpoint(tmp_path / 'a.pth')['states']
    set_random_states(loaded)
    assert [draw() for _ in range(3)] == expected
    torch.load(tmp_path / 'a.pth', weights_only=True)  # with nothing allowed
