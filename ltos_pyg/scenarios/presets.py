"""Options shared by several scenarios: small networks, and those published by the compared papers."""

from __future__ import annotations

from typing import Any

# Discount, learning rate, targets and layers that the authors of DGN published for the jungle.
PAPER_DGN: dict[str, Any] = {
    'gamma': 0.96,
    'n_step': 1,
    'double_q': False,
    'huber': None,
    'lr': 1e-4,
    'lr_final_fraction': 1.0,
    'ema_decay': 0.0,
    'augment': False,
    'average_views': False,
    'action_gap': 0.0,
    'greedy_fraction': 0.0,
    'eval_temperature': 0.0,
    'encoder_channels': (512,),
}
# The high level as in the paper and the code of its authors: phi ascends the low level's own critic, starts from a kept
# share of 0.8, and takes one step per 70 steps of Q (250 and 17,500 there), with small noise on its logits that is held
# for 15 steps. There is a gradient step every fourth env step; with fewer, Q is far from convergence when phi moves.
PAPER_LTOS: dict[str, Any] = {
    'objective': 'gradient',
    'initial_kept': 0.8,
    'phi_lr': 1e-3,
    'phi_starts': 0.23,  # a quarter of the actions are random then, as the authors' schedule intends
    'phi_every': 70,
    'wide_start': 0.0,
    'wide_end': 0.0,
    'noise_joint': 0.0,
    'noise_own': 0.25,
    'noise_received': 0.25,
    'noise_local': 1.0,
    'hold_steps': 15,
    'train_freq': 4.0,
}

# The low level of the authors' traffic code: one-step targets with the maximum of the target network, mean square.
PAPER_TRAFFIC: dict[str, Any] = {
    'n_step': 1,
    'double_q': False,
    'huber': None,
    'lr': 1e-3,
    'lr_final_fraction': 1.0,
    'ema_decay': 0.0,
    'action_gap': 0.0,
    'greedy_fraction': 0.0,
}

# ConseNet as in the code of NeurComm's authors.
REFERENCE_CONSENET: dict[str, Any] = {'critic': 'recurrent', 'consensus': 'uniform', 'alpha': 0.9}

SMALL: dict[str, Any] = {
    'hidden_channels': 32,
    'encoder_channels': (32,),
    'num_layers': 1,
    'heads': 2,
    'phi_channels': 32,
}
