"""Adam for G and D, and the learning rate of each step."""

import torch


def add_optimizer_args(parser):
    """Add the flags of both optimizers and of the learning rates' decay."""
    group = parser.add_argument_group("optimizers")
    for network, lr in (("G", 5e-5), ("D", 2e-4)):
        group.add_argument(f"--{network}_lr", type=float, default=lr, help=f"Adam's learning rate of {network}")
        group.add_argument(f"--{network}_B1", type=float, default=0.0, help=f"Adam's beta1 of {network}")
        group.add_argument(f"--{network}_B2", type=float, default=0.999, help=f"Adam's beta2 of {network}")
    group.add_argument("--adam_eps", type=float, default=1e-8, help="Adam's epsilon")
    group.add_argument("--lr_decay_start", type=int, default=0, help="step from which both learning rates fall")
    group.add_argument("--lr_decay_end", type=int, default=0, help="step from which they stay again; 0: no decay")
    group.add_argument("--lr_decay_to", type=float, default=0.0, help="fraction of themselves to which they fall")


def check_optimizer_args(parser, args):
    """End in one line where a value cannot be."""
    for name in ("G_lr", "D_lr", "adam_eps"):
        if not 0 < getattr(args, name) < 10:
            parser.error(f"--{name} {getattr(args, name)} must be positive")
    for name in ("G_B1", "G_B2", "D_B1", "D_B2"):
        if not 0 <= getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} must lie in [0, 1)")
    if not 0 <= args.lr_decay_to <= 1:
        parser.error(f"--lr_decay_to {args.lr_decay_to} must lie in [0, 1]")
    if (args.lr_decay_start or args.lr_decay_end) and not 0 <= args.lr_decay_start < args.lr_decay_end:
        parser.error(f"--lr_decay_end {args.lr_decay_end} must lie after --lr_decay_start {args.lr_decay_start}")


def make_optimizers(G, D, args):
    """The Adam of G and that of D."""
    return (
        torch.optim.Adam(G.parameters(), lr=args.G_lr, betas=(args.G_B1, args.G_B2), eps=args.adam_eps),
        torch.optim.Adam(D.parameters(), lr=args.D_lr, betas=(args.D_B1, args.D_B2), eps=args.adam_eps),
    )


def learning_rates(args, step):
    """The learning rates (of G, of D) during step 1, 2, ...: a function of the step alone, so that resuming is exact.

    They are whole for --lr_decay_start steps, then fall linearly, and are down to --lr_decay_to of themselves once
    --lr_decay_end steps are done.
    """
    if not args.lr_decay_end:
        return args.G_lr, args.D_lr
    progress = (step - 1 - args.lr_decay_start) / (args.lr_decay_end - args.lr_decay_start)
    factor = 1 - (1 - args.lr_decay_to) * min(max(progress, 0), 1)
    return args.G_lr * factor, args.D_lr * factor


def set_learning_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr
