import numpy as np
import pytest
import torch

from ltos_pyg.seeding import generator, restore, seed_stream

NAMES = ['env', 'replay', 'explore', 'init', 'evaluate', 'e', 'nv', 'env/0', 'env/1']


def test_a_stream_depends_on_its_seed_and_name_alone():
    before = seed_stream(7, 'replay')
    for name in NAMES:
        seed_stream(7, name)
    assert seed_stream(7, 'replay') == before
    assert len({seed_stream(seed, name) for seed in range(50) for name in NAMES}) == 50 * len(NAMES)


def test_the_numbers_stay_the_same_between_versions():
    assert seed_stream(0, 'env') == np.random.SeedSequence([0, 101, 110, 118]).generate_state(1, np.uint64).item()
    assert seed_stream(0, 'env') == 13_883_149_931_451_094_342


def test_several_names_make_a_path():
    assert seed_stream(3, 'env', '0') == seed_stream(3, 'env/0')
    assert seed_stream(3, 'a', 'bc') != seed_stream(3, 'ab', 'c')


def test_two_generators_of_a_stream_agree_and_leave_the_global_ones_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first, again, other = generator(1, 'replay'), generator(1, 'replay'), generator(1, 'explore')
    draws = [torch.rand(100, generator=g) for g in (first, again, other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5, '0'])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"'seed' must be an integer in \[0, 2\*\*32\) \(got"):
        seed_stream(seed, 'env')


@pytest.mark.parametrize('names', [(), ('',), ('env', '')])
def test_a_missing_name_is_refused(names):
    with pytest.raises(ValueError, match="'names' must be non-empty"):
        seed_stream(0, *names)


def test_a_state_that_fits_is_continued_and_one_of_another_device_starts_again_alike():
    saved, there = generator(0, 'replay'), generator(1, 'replay')
    restore({'replay': there}, {'replay': saved.get_state()})
    assert torch.equal(torch.rand(3, generator=there), torch.rand(3, generator=saved))
    on_a_gpu = torch.arange(16, dtype=torch.uint8)  # the size of CUDA's states
    draws = []
    for state in (on_a_gpu, on_a_gpu, on_a_gpu + 1):
        with pytest.warns(UserWarning, match='saved on another kind of device'):
            restore({'replay': there}, {'replay': state})
        draws.append(torch.rand(3, generator=there))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
