import builtins
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltos_pyg.viz.drawing import (
    ATTACK,
    GIFT,
    ITEM_COLOUR,
    KEEPS_ALL,
    Scene,
    border,
    draw_scene,
    save_gif,
    save_pngs,
    shade,
    terminal_view,
)

CELL, LEFT, TOP = 51, 8, 26  # pixels of a 10 x 10 scene


def scene(**more):
    fields = {
        'size': (10, 10),
        'positions': [[2, 5], [7, 5]],
        'edge_index': [[0, 1], [1, 0]],
        'given': [0.3, 0.0],
        'kept': [0.7, 1.0],
    }
    return Scene(**{**fields, **more})


def cell(frame, x, y):
    """The pixels of one cell."""
    return frame[TOP + y * CELL : TOP + (y + 1) * CELL, LEFT + x * CELL : LEFT + (x + 1) * CELL]


def count(frame, colour, tolerance=40):
    return int((np.abs(frame.astype(int) - colour).max(-1) <= tolerance).sum())


def grid(frame):
    return frame[TOP : TOP + 10 * CELL]


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_a_picture_is_rgb_and_the_same_each_time():
    frame = draw_scene(scene())
    assert frame.dtype == np.uint8
    assert frame.shape == (TOP + 10 * CELL + 42, 10 * CELL + 16, 3)
    assert np.array_equal(frame, draw_scene(scene()))


def test_only_the_cells_of_an_agent_change_when_it_moves():
    still, moved = (draw_scene(scene(given=None, positions=[[2, 5], to])) for to in ([7, 5], [8, 6]))
    changed = (still != moved).any(-1)
    for x in range(10):
        for y in range(10):
            assert bool(cell(changed, x, y)[3:-3, 3:-3].any()) == ((x, y) in {(7, 5), (8, 6)})


def test_an_agent_is_as_dark_as_the_share_it_keeps():
    frame = draw_scene(scene(given=None, kept=[0.25, 1.0]))
    assert count(cell(frame, 2, 5), shade(0.25), 0) > 500
    assert count(cell(frame, 7, 5), KEEPS_ALL, 0) > 500
    brightness = [sum(shade(kept)) for kept in np.linspace(0, 1, 11)]
    assert brightness == sorted(brightness, reverse=True)


def test_a_larger_share_is_a_broader_wedge():
    without = grid(draw_scene(scene(given=[0.0, 0.0])))
    shares = (0.1, 0.3, 0.6, 1.0)
    pixels = [int((grid(draw_scene(scene(given=[share, 0.0]))) != without).any(-1).sum()) for share in shares]
    assert pixels[0] > 100
    assert all(wide > 1.3 * narrow for narrow, wide in itertools.pairwise(pixels))


def test_a_wedge_is_broad_at_the_sender_and_both_directions_are_seen():
    sent = draw_scene(scene(given=[0.8, 0.0]))
    returned = draw_scene(scene(given=[0.0, 0.8]))
    near, far = (count(cell(sent, x, 5), GIFT, 60) for x in (3, 6))
    assert near > 2 * far > 0
    near, far = (count(cell(returned, x, 5), GIFT, 60) for x in (6, 3))
    assert near > 2 * far > 0
    nothing = draw_scene(scene(given=[0.0, 0.0]))
    heights = [np.nonzero((frame != nothing).any(-1))[0].mean() for frame in (sent, returned)]
    assert heights[0] - heights[1] > 0.15 * CELL  # each keeps to its right, as on a road


def test_items_lie_in_their_cells():
    frame = draw_scene(scene(items={'food': [[1, 1]], 'wall': [[3, 8]], 'goal': [[8, 2]]}))
    for kind, at in (('food', (1, 1)), ('wall', (3, 8)), ('goal', (8, 2))):
        assert count(cell(frame, *at), ITEM_COLOUR[kind], 0) > 600
        assert count(grid(frame), ITEM_COLOUR[kind], 0) < 60 * 60 + 2100  # and the frame around the grid


def test_attacks_are_red_at_the_victim_only():
    calm, fight = draw_scene(scene()), draw_scene(scene(marks=[(0, 1)]))
    assert count(grid(calm), ATTACK) == 0
    assert count(cell(fight, 7, 5), ATTACK) > 3 * count(cell(fight, 2, 5), ATTACK)


def test_agents_on_one_cell_are_both_seen():
    frame = draw_scene(scene(positions=[[4, 4], [4, 4]], kept=[0.2, 1.0], given=None))
    assert count(grid(frame), shade(0.2), 0) > 200
    assert count(grid(frame), KEEPS_ALL, 0) > 200


def test_title_legend_and_kinds_are_drawn():
    plain = draw_scene(scene())
    titled = draw_scene(scene(title='step 3, return 0.25'))
    changed = (plain != titled).any(-1)
    assert changed[:TOP].any()
    assert not changed[TOP:].any()
    assert not np.array_equal(plain, draw_scene(scene(kinds=[0, 1])))
    assert count(plain[TOP + 10 * CELL + 4 :], (255, 255, 255), 0) < plain[TOP + 10 * CELL + 4 :, :, 0].size - 500


@pytest.mark.parametrize('size', [(9, 1), (1, 9), (30, 30), (200, 3), (1, 1)])
def test_grids_of_any_shape(size):
    frame = draw_scene(Scene(size=size, positions=[[0, 0], [size[0] - 1, size[1] - 1]], kept=[0.5, 0.5]))
    assert 75 < frame.shape[0] < 700
    assert 420 < frame.shape[1] < 900


def test_an_empty_scene_and_tensors_are_ordinary():
    empty = Scene(size=(5, 5), positions=torch.zeros(0, 2), kept=torch.zeros(0), given=torch.zeros(0))
    assert draw_scene(empty).size > 0
    assert '·' in terminal_view(empty)
    weights = torch.tensor([0.3, 0.0], requires_grad=True)
    tensors = scene(positions=torch.tensor([[2, 5], [7, 5]]), edge_index=torch.tensor([[0, 1], [1, 0]]), given=weights)
    assert np.array_equal(draw_scene(tensors), draw_scene(scene()))


def test_a_scene_cannot_be_changed():
    with pytest.raises(AttributeError):
        scene().title = 'new'


def test_the_border_is_one_ring_of_cells():
    assert len(border((30, 30))) == 30 * 30 - 28 * 28
    assert {tuple(at) for at in border((3, 2))} == {(x, y) for x in range(3) for y in range(2)}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def frames():
    return [
        draw_scene(scene(positions=[[2, 5], [7, y]], marks=[(0, 1)] if y == 3 else (), title=f'{y}')) for y in range(6)
    ]


def test_a_gif_has_every_frame_its_speed_and_its_colours(frames, tmp_path):
    path = save_gif(frames, tmp_path / 'a.gif', fps=8)
    with Image.open(path) as gif:
        assert gif.n_frames == len(frames)
        assert gif.info['loop'] == 0
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert gif.info['duration'] == 120
            shown = np.asarray(gif.convert('RGB')).astype(int)
            assert np.abs(shown - frame).mean() < 2
            for x, y in ((7, 0), (7, 3), (7, 5)):  # agents are where they were drawn
                assert np.abs(cell(shown, x, y) - cell(frame, x, y)).max() < 60
    assert [p.name for p in tmp_path.iterdir()] == ['a.gif']


def test_a_rare_colour_survives_among_many(tmp_path):
    rng = np.random.default_rng(0)
    edges = np.stack([np.arange(20), np.roll(np.arange(20), 1)])
    crowd = []
    for step in range(12):  # many blues and oranges, and one attack among 30 x 30 cells
        at, shares = rng.permutation(900)[:20], rng.random(20)
        where = np.stack(np.divmod(at, 30), axis=1)
        marks = [(0, 1)] if step == 5 else []
        crowd.append(
            draw_scene(
                Scene(size=(30, 30), positions=where, edge_index=edges, given=1 - shares, kept=shares, marks=marks)
            )
        )
    with Image.open(save_gif(crowd, tmp_path / 'a.gif')) as gif:
        red = []
        for i in range(gif.n_frames):
            gif.seek(i)
            red.append(count(np.asarray(gif.convert('RGB'))[TOP:-42], ATTACK, 0))
    assert red[5] > 20
    assert sum(red) == red[5]


def test_equal_frames_are_a_longer_pause(frames, tmp_path):
    with Image.open(save_gif([frames[0], frames[0], frames[1]], tmp_path / 'a.gif', fps=10)) as gif:
        assert gif.n_frames == 2
        assert gif.info['duration'] == 200


def test_labels_may_be_an_array_and_an_empty_one_keeps_its_cell():
    scene = Scene(size=(3, 1), positions=[[0, 0], [2, 0]], labels=np.array(['', 'b']))
    assert terminal_view(scene).splitlines()[0].rstrip() == '? · b'


def test_a_pause_longer_than_a_gif_has_is_shortened(frames, tmp_path):
    with Image.open(save_gif([*[frames[0]] * 3, frames[1]], tmp_path / 'a.gif', fps=0.003)) as gif:
        assert gif.n_frames == 2
        assert gif.info['duration'] == 333_330  # one of three: two would be 666 s


def test_pngs_are_the_frames(frames, tmp_path):
    paths = save_pngs(iter(frames), tmp_path / 'new' / 'episode')
    assert [path.name for path in paths] == [f'frame_{i:04d}.png' for i in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), frame)
    assert len(list((tmp_path / 'new' / 'episode').iterdir())) == len(frames)
    assert save_pngs(frames[:1], tmp_path / 'new' / 'episode') == list((tmp_path / 'new' / 'episode').iterdir())


@pytest.mark.parametrize('save', [save_gif, save_pngs])
def test_frames_of_several_sizes_or_none_are_refused(frames, tmp_path, save):
    with pytest.raises(ValueError, match=r"'frames' must be one or more pictures of one size \(got \(578.*, \(578"):
        save([frames[0], frames[0][:, :-1]], tmp_path / 'x')
    with pytest.raises(ValueError, match=r'got no frame'):
        save([], tmp_path / 'x')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('fps', [0, -1, 0.001, 60])
def test_a_speed_that_gifs_do_not_have(frames, tmp_path, fps):
    with pytest.raises(ValueError, match=r"'fps' must lie in \[0\.002, 50\]"):
        save_gif(frames, tmp_path / 'x.gif', fps=fps)


@pytest.mark.skipif(sys.platform == 'win32', reason='needs resource limits')
def test_a_gif_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    (tmp_path / 'a.gif').write_bytes(b'earlier')
    code = f"""if True:
        import resource
        import numpy as np
        from ltos_pyg.viz.drawing import save_gif
        frames = np.random.default_rng(0).integers(0, 256, size=(5, 100, 100, 3), dtype=np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save_gif(frames, {str(tmp_path / 'a.gif')!r})
    """
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search(r"OSError: .*cannot write '.*a.gif': .*the earlier file is untouched", done.stderr), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['a.gif']
    assert (tmp_path / 'a.gif').read_bytes() == b'earlier'


def test_without_pillow_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('PIL'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    assert 'kept 0.85' in terminal_view(scene())
    with pytest.raises(ImportError, match=r"pip install 'ltos_pyg\[plot\]'"):
        draw_scene(scene())


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_terminal_shows_where_agents_are():
    view = terminal_view(
        Scene(
            size=(5, 4),
            positions=[[1, 1], [2, 1], [3, 2], [3, 2]],
            kept=[0.2, 0.4, 0.6, 0.8],
            items={'wall': border((5, 4)), 'food': [[1, 2]]},
            marks=[(0, 1)],
            title='step 4',
        )
    )
    assert view.splitlines() == [
        'step 4',
        '█ █ █ █ █',
        '█ 0 1 · █',
        '█ ♣ · + █',
        '█ █ █ █ █',
        'attacks: 0→1',
        'kept 0.50 (0.20 to 0.80)',
    ]


def test_the_corridor_is_one_line():
    view = terminal_view(Scene(size=(9, 1), positions=[[3, 0], [5, 0]], labels=['A', 'B'], items={'goal': [[4, 0]]}))
    assert view == '· · · A □ B · · ·'


def test_colours_change_nothing_but_colours():
    one = scene(items={'food': [[1, 1]]}, marks=[(0, 1)])
    coloured = terminal_view(one, colour=True)
    assert '\x1b[' in coloured
    assert re.sub(r'\x1b\[[0-9;]*m', '', coloured) == terminal_view(one)


def test_more_agents_than_names():
    positions = [[i % 10, i // 10] for i in range(70)]
    view = terminal_view(Scene(size=(10, 7), positions=positions))
    assert view.splitlines()[0] == '0 1 2 3 4 5 6 7 8 9'
    assert view.count('?') == 8


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'size': (0, 3)}, r"'size' must be at least one cell"),
        ({'positions': [[1, 2, 3], [4, 5, 6]]}, r"'positions' must be finite x, y pairs .* \(got shape \(2, 3\)\)"),
        ({'positions': [[0, np.nan], [1, 1]]}, r"'positions' must be finite"),
        (
            {'edge_index': [[0, 1], [1, 0], [1, 1]]},
            r"'edge_index' must have shape \(2, E\) \(got \(3, 2\)\). Transpose",
        ),
        ({'edge_index': [[0, 1], [1, 2]]}, r"'edge_index' must name agents 0 to 1 \(got 0 to 2\). Was it"),
        ({'marks': [[0, -1]]}, r"'marks' must name agents 0 to 1 \(got -1 to 0\)"),
        ({'marks': [0, 1]}, r"'marks' must have shape \(K, 2\)"),
        ({'given': [0.5]}, r"'given' needs one share per edge: expected shape \(2,\), got \(1,\)"),
        ({'kept': [0.5, 0.5, 0.5]}, r"'kept' needs one share per agent: expected shape \(2,\), got \(3,\)"),
        ({'kept': [0.5, 1.5]}, r"'kept' must lie in \[0, 1\] \(got 0.5 to 1.5\)"),
        ({'given': [0.5, np.nan]}, r"'given' must lie in \[0, 1\]"),
        ({'labels': ['A']}, r"'labels' needs one entry per agent: expected 2, got 1"),
        ({'kinds': [1, 2, 3]}, r"'kinds' needs one entry per agent"),
        ({'items': {'tree': [[0, 0]]}}, r"'items' may hold \['food', 'goal', 'wall'\] \(got \['tree'\]\)"),
        ({'items': {'food': [0, 0]}}, r"'items\['food'\]' must be finite x, y pairs"),
    ],
)
def test_a_scene_that_does_not_fit_together_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        scene(**fields)


def test_a_missing_folder_is_named(frames):
    with pytest.raises(OSError, match=r"the folder '.*nowhere' does not exist"):
        save_gif(frames, Path('/nowhere/a.gif'))
