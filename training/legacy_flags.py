"""Flags of the reference family that mean nothing here: accepted with a line, or refused with the remedy."""

import argparse

import utils

# Flags whose effect is always on here, or without object.
ACCEPTED_SWITCHES = {
    "shuffle": "training images are always shuffled",
    "use_multiepoch_sampler": "the sampler always goes on past the end of the data, and resumes exactly",
    "use_ema": "with --ema, the moving average is what is evaluated and sampled",
    "G_eval_mode": "running batch-norm statistics are the default; see --bn_mode",
    "mybn": "batch norm computes the same; standing statistics are --bn_mode standing",
    "toggle_grads": "gradients of the network that does not learn are always off",
    "resume": "running the same command again always resumes",
    "no_pin_memory": "memory is pinned on CUDA only",
    "skip_init": "weights always start as --G_init and --D_init say",
    "no_fid": "an evaluation always has the Frechet distance; --test_every 0 trains without any",
    "load_weights": "the newest checkpoint of --experiment_name is resumed by itself",
}
ONE_VECTOR = "spectral norm divides by one singular value, after one power iteration a forward"
# Flags with a value, of which only some can be had here: name -> (values that run, None for any; what to say).
ACCEPTED_VALUES = {
    "G_nl": (("relu", "inplace_relu", "ir"), "in-place ReLU computes the same as ReLU in this family"),
    "D_nl": (("relu", "inplace_relu", "ir"), "in-place ReLU computes the same as ReLU in this family"),
    "norm_style": (("bn",), "the norm of G is batch norm"),
    "pbar": (("mine", "tqdm"), "the progress bar is tqdm"),
    "which_train_fn": (("GAN",), "there is one training function"),
    "z_var": (("1", "1.0"), "z is standard normal in training"),
    "num_G_SVs": (("1",), ONE_VECTOR),
    "num_D_SVs": (("1",), ONE_VECTOR),
    "num_G_SV_itrs": (("1",), ONE_VECTOR),
    "num_D_SV_itrs": (("1",), ONE_VECTOR),
    "base_root": (None, "data sets are in --data_root, runs in --runs_root"),
}
REFUSED = {
    "accumulate_stats": "use --bn_mode standing",
    "log_G_spectra": "--sv_log_interval N logs the singular values of all layers every N steps",
    "log_D_spectra": "--sv_log_interval N logs the singular values of all layers every N steps",
    "split_D": "D always sees real and fake images in one forward",
    "weights_root": "use --runs_root",
    "logs_root": "use --runs_root",
    "samples_root": "use --runs_root",
    "hashname": "use --experiment_name",
    "config_from_name": "use --experiment_name",
    "logstyle": "log.jsonl holds plain numbers",
    "hdf5": "data sets are always HDF5 files; see make_hdf5.py",
    "dataset_root": "use --data_root",
}


# The family's switches of mixed precision, for one network or both: name -> --amp. Here both networks compute alike.
MIXED_PRECISION = {"G_fp16": "fp16", "D_fp16": "fp16", "G_mixed_precision": "fp16", "D_mixed_precision": "fp16"}


class _Amp(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        namespace.amp = MIXED_PRECISION[self.option_strings[0][2:]]
        note = f"{option_string}: as --amp {namespace.amp}, for G and D"
        namespace.legacy_notes = [*(namespace.legacy_notes or []), note]


class _Accept(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        name = self.option_strings[0][2:]
        if name in ACCEPTED_SWITCHES:
            note = ACCEPTED_SWITCHES[name]
            if values:  # only `--load_weights` of later revisions of the family takes one
                raise utils.UserError(f"{option_string} {' '.join(values)}: {note}")
        else:
            allowed, note = ACCEPTED_VALUES[name]
            if allowed and values not in allowed:
                parser.error(f"{option_string} {values}: only {', '.join(allowed)} can be had here")
        namespace.legacy_notes = [*(namespace.legacy_notes or []), f"{option_string}: {note}"]


class _Refuse(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        raise utils.UserError(f"{option_string} is not a flag here: {REFUSED[self.option_strings[0][2:]]}")


def add_legacy_args(parser: argparse.ArgumentParser) -> None:
    """Accept or refuse the flags above; what the accepted ones do not do is listed in `args.legacy_notes`."""
    parser.set_defaults(legacy_notes=None)
    for name in ACCEPTED_SWITCHES:
        nargs = "*" if name == "load_weights" else 0
        parser.add_argument(f"--{name}", action=_Accept, nargs=nargs, dest="legacy_notes", help=argparse.SUPPRESS)
    for name in ACCEPTED_VALUES:
        parser.add_argument(f"--{name}", action=_Accept, dest="legacy_notes", help=argparse.SUPPRESS)
    for name in MIXED_PRECISION:
        parser.add_argument(
            f"--{name}", action=_Amp, nargs=0, dest="amp", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    for name in REFUSED:
        parser.add_argument(f"--{name}", action=_Refuse, nargs="*", dest="legacy_notes", help=argparse.SUPPRESS)
