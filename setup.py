from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    'plot': ['matplotlib>=3.8', 'pillow>=10.1'],
    'tensorboard': ['tensorboard>=2.14'],
    'wandb': ['wandb>=0.17'],
    'pettingzoo': ['pettingzoo>=1.24'],
    'scatter': ['torch-scatter>=2.1.2'],
    'sweep': ['optuna>=4.0'],
    'ray': ['ray>=2.30'],
    'slurm': ['submitit>=1.5'],
    'test': [
        'pytest>=8',
        'pytest-xdist>=3.5',
        'hypothesis>=6.100',
        'pettingzoo>=1.24',
        'mpe2>=1.0',
        'magent2>=0.3.4',
        'tensorboard>=2.14',
        'scipy>=1.11',
    ],
    'dev': ['ruff>=0.6', 'mypy>=1.11', 'build>=1.2'],
    'docs': ['sphinx>=8.1', 'furo>=2024.8', 'myst-nb>=1.1', 'pettingzoo>=1.24', 'mpe2>=1.0'],
}
EXTRAS['test'] += EXTRAS['plot'] + EXTRAS['sweep'] + EXTRAS['slurm']
EXTRAS['docs'] += EXTRAS['plot']
# `scatter` builds from source against an installed torch, `wandb` needs an account, `ray` is large, and the site is
# built for itself: these are asked for by name.
EXTRAS['all'] = sorted(
    {req for extra, reqs in EXTRAS.items() if extra not in ('scatter', 'wandb', 'ray', 'docs') for req in reqs}
)

setup(
    name='ltos_pyg',
    version='0.1.0',
    description='Learning to Share (LToS) and graph multi-agent reinforcement learning on PyTorch Geometric',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    python_requires='>=3.11',
    packages=[
        *find_packages(include=['ltos_pyg*']),
        *(f'ltos_pyg.{name}' for name in find_packages(include=['envs*'])),
    ],
    package_dir={'ltos_pyg.envs': 'envs'},
    package_data={
        'ltos_pyg': ['py.typed', 'pretrained/*/*', 'pretrained/*/zero_shot/*'],
        'ltos_pyg.experiments': ['speeds.json'],
        'ltos_pyg.envs': ['py.typed'],
    },
    install_requires=[
        'torch>=2.4',
        'torch-geometric>=2.6',
        'numpy>=1.26',
        'gymnasium>=1.0',
        'numba>=0.60',
        'psutil>=5.9',
        'tqdm>=4.66',
        'tyro>=0.9',
    ],
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': ['ltos = ltos_pyg.cli:main'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
