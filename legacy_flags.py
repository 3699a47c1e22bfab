"""Flags of the reference family that mean nothing here: accepted with a line, or refused with the remedy."""

import argparse

import utils

# Flags whose effect is always on here, or without object.
ACCEPTED_SWITCHES = {
    "shuffle": "training images are always shuffled",
    "use_multiepoch_sampler": "the sampler always goes on past the end of the data, and resumes exactly",
    "use_ema": "with --ema, the moving average is what is evaluated and sampled",
    "G_eval_mode": "G is always evaluated with its running batch-norm statistics",
    "toggle_grads": "gradients of the network that does not learn are always off",
    "resume": "running the same command again always resumes",
    "no_pin_memory": "memory is pinned on CUDA only",
}
# Flags with a value, of which only some can be had here: name -> (values that run, what to say).
ACCEPTED_VALUES = {
    "G_nl": (("relu", "inplace_relu", "ir"), "in-place ReLU computes the same as ReLU in this family"),
    "D_nl": (("relu", "inplace_relu", "ir"), "in-place ReLU computes the same as ReLU in this family"),
    "norm_style": (("bn",), "the norm of G is batch norm"),
    "pbar": (("mine", "tqdm"), "the progress bar is tqdm"),
    "retention_ratio": (("100", "100.0"), "the whole training set is used"),
    "embedding": (("inceptionv3", "resnet50"), "without instance selection no embedding is used"),
    "density_measure": (("gaussian", "ppca", "nn_dist"), "without instance selection no density is used"),
    "which_train_fn": (("GAN",), "there is one training function"),
}
REFUSED = {
    "load_weights": "the newest checkpoint of --experiment_name is resumed by itself",
    "base_root": "use --runs_root",
    "weights_root": "use --runs_root",
    "logs_root": "use --runs_root",
    "samples_root": "use --runs_root",
    "hashname": "use --experiment_name",
    "config_from_name": "use --experiment_name",
    "no_fid": "use --test_every 0 to train without evaluation",
    "logstyle": "log.jsonl holds plain numbers",
    "augment": "use --flip",
    "hdf5": "data sets are always HDF5 files; see make_hdf5.py",
    "dataset_root": "use --data_root",
}


class _Accept(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        name = self.option_strings[0][2:]
        if name in ACCEPTED_SWITCHES:
            notes = [ACCEPTED_SWITCHES[name]]
        else:
            allowed, text = ACCEPTED_VALUES[name]
            if values not in allowed:
                parser.error(f"{option_string} {values}: only {', '.join(allowed)} can be had here")
            notes = [text]
        namespace.legacy_notes = [*(getattr(namespace, "legacy_notes", None) or []), f"{option_string}: {notes[0]}"]


class _Refuse(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        raise utils.UserError(f"{option_string} is not a flag here: {REFUSED[self.option_strings[0][2:]]}")


def add_legacy_args(parser):
    """Accept or refuse the flags above; what the accepted ones do not do is listed in `args.legacy_notes`."""
    parser.set_defaults(legacy_notes=None)
    for name in ACCEPTED_SWITCHES:
        parser.add_argument(f"--{name}", action=_Accept, nargs=0, dest="legacy_notes", help=argparse.SUPPRESS)
    for name in ACCEPTED_VALUES:
        parser.add_argument(f"--{name}", action=_Accept, dest="legacy_notes", help=argparse.SUPPRESS)
    for name in REFUSED:
        parser.add_argument(f"--{name}", action=_Refuse, nargs="*", dest="legacy_notes", help=argparse.SUPPRESS)
