"""The run that tests train: quick, and with every service."""

FLAGS = [
    *('train', 'prisoner', '--algo', 'ltos', '--no-media', '--num-envs', '8', '--total-steps', '1600'),
    *('--log-every', '160', '--eval-every', '400', '--eval-episodes', '4', '--final-episodes', '6'),
    *('--checkpoint-every', '160', '--learning-starts', '80', '--train-freq', '16', '--batch-size', '8'),
    *('--hidden-channels', '16', '--encoder-channels', '16', '--phi-channels', '8', '--hold-steps', '7'),
]
LAST = 1600
