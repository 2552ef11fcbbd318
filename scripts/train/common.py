"""Parts that both training stages share."""
import json
import os
import signal
import time

import torch

CACHE = os.environ.get("LATENTD_TRAIN", os.path.expanduser("~/.cache/latentd-train"))


def orthogonal(g, steps=4):
    """Nearest semi-orthogonal matrix to g, roughly (Newton-Schulz, quintic)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    for _ in range(steps):
        s = x @ x.T
        x = a * x + torch.addmm(s, s, s, beta=b, alpha=c) @ x
    return x.T if tall else x


class Team:
    """The processes of one torchrun, or just this one.

    On a CPU two processes of one thread each do more than one process of two
    threads when the machine is shared: they wait for each other once a step,
    not at every operation.
    """

    def __init__(self, device):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        if self.size > 1:
            torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def add(self, x):
        if self.size > 1:
            torch.distributed.all_reduce(x)
        return x

    def mean_grads(self, params, extra=()):
        """Mean of the gradients over the team; returns the sums of extra."""
        ps = [p for p in params if p.grad is not None]
        tail = torch.tensor(list(extra), dtype=torch.float32, device=ps[0].device)
        if self.size == 1:
            return tail.tolist()
        flat = self.add(torch.cat([p.grad.reshape(-1) for p in ps] + [tail]))
        at = 0
        for p in ps:
            p.grad.copy_(flat[at:at + p.numel()].view_as(p.grad) / self.size)
            at += p.numel()
        return flat[at:].tolist()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates for weight matrices, Adam for the rest.

    The job is to learn few pictures in few steps on a slow machine; this needs
    far fewer steps than Adam alone. The scale 0.2*sqrt(max(rows, cols)) gives
    the updates the size Adam's have, so that both groups share one rate.
    """

    def __init__(self, named, lr, momentum=0.95, betas=(0.9, 0.98), weight_decay=0.0,
                 plain=(), team=None):
        self.team = team
        mats, rest = [], []
        for n, p in named:
            if not p.requires_grad:
                continue
            ok = p.ndim >= 2 and min(p.size(0), p[0].numel()) >= 16
            (mats if ok and not any(k in n for k in plain) else rest).append(p)
        super().__init__([dict(params=mats, muon=True), dict(params=rest, muon=False)],
                         dict(lr=lr, momentum=momentum, betas=betas,
                              weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            lr = g["lr"]
            ps = [p for p in g["params"] if p.grad is not None]
            if not ps:
                continue
            if g["muon"]:
                size, rank = (self.team.size, self.team.rank) if self.team else (1, 0)
                us = []
                for j, p in enumerate(ps):
                    st = self.state[p]
                    if not st:
                        st["m"] = torch.zeros_like(p)
                    m = st["m"].mul_(g["momentum"]).add_(p.grad)
                    if j % size == rank:  # each process works out its share
                        u = p.grad.add(m, alpha=g["momentum"]).reshape(p.size(0), -1)
                        us.append(orthogonal(u).reshape(-1))
                    else:
                        us.append(torch.zeros(p.numel(), device=p.device))
                if size > 1:
                    us = self.team.add(torch.cat(us)).split([p.numel() for p in ps])
                for p, u in zip(ps, us):
                    u = u.view(p.shape)
                    n = p.numel() // p.size(0)
                    if g["weight_decay"]:
                        p.mul_(1 - lr * g["weight_decay"])
                    p.add_(u, alpha=-lr * 0.2 * max(p.size(0), n) ** 0.5)
            else:
                b1, b2 = g["betas"]
                g["t"] = t = g.get("t", 0) + 1
                for p in ps:
                    st = self.state[p]
                    if not st:
                        st["m"], st["v"] = torch.zeros_like(p), torch.zeros_like(p)
                m = [self.state[p]["m"] for p in ps]
                v = [self.state[p]["v"] for p in ps]
                gr = [p.grad for p in ps]
                torch._foreach_lerp_(m, gr, 1 - b1)
                torch._foreach_mul_(v, b2)
                torch._foreach_addcmul_(v, gr, gr, 1 - b2)
                d = torch._foreach_sqrt(v)
                torch._foreach_div_(d, (1 - b2 ** t) ** 0.5)
                torch._foreach_add_(d, 1e-8)
                torch._foreach_addcdiv_(ps, m, d, -lr / (1 - b1 ** t))


class Ema:
    """Running mean of the weights; short memory at first, longer later."""

    def __init__(self, params, decay):
        self.p = list(params)
        self.s = [p.detach().clone() for p in self.p]
        self.decay, self.n = decay, 0

    @torch.no_grad()
    def update(self):
        self.n += 1
        d = min(self.decay, (1 + self.n) / (10 + self.n))
        torch._foreach_lerp_(self.s, [p.detach() for p in self.p], 1 - d)

    @torch.no_grad()
    def swap(self):
        for p, s in zip(self.p, self.s):
            t = p.detach().clone()
            p.copy_(s)
            s.copy_(t)

    def state(self):
        return {"s": self.s, "n": self.n}

    def load(self, st):
        for a, b in zip(self.s, st["s"]):
            a.copy_(b)
        self.n = st["n"]


class Meter:
    """Running means by name, and how many a second a team does, for the log"""

    def __init__(self, team):
        self.team, self.means = team, {}
        self.restart()

    def restart(self):
        self.seen, self.wall, self.cpu = 0, time.time(), time.process_time()

    def note(self, name, value):
        self.means[name] = self.means.get(name, value) + 0.03 * (value - self.means.get(name, value))

    def write(self, work, name, **more):
        log(work, name, **more, **self.means, per_s=self.seen / (time.time() - self.wall),
            cpu=(time.process_time() - self.cpu) / self.seen * self.team.size)
        self.restart()


def averaged(model, named, st):
    """MODEL with its state, and the running means of the parameters NAMED."""
    model.load_state_dict(st["model"])
    ema = Ema((p for _, p in named), 0.998)
    ema.load(st["ema"])
    ema.swap()


class Clock:
    """Share of the time budget that is used, for schedules that must end in time.

    --until HH:MM (UTC, today) wins over --minutes. Time in which the process
    was stopped counts with --until: the end must not move.
    """

    def __init__(self, minutes, until=None, start=None):
        now = time.time()
        self.start = start or now
        self.end = self.start + minutes * 60
        if until:
            h, m = map(int, until.split(":"))
            self.end = now - now % 86400 + h * 3600 + m * 60

    def share(self):
        return min(1.0, (time.time() - self.start) / max(1.0, self.end - self.start))


def rate(share, step, lr, warm=100, floor=0.01, hold=0.0):
    """Warm-up by steps, then a cosine over the time budget."""
    import math
    x = max(0.0, (share - hold) / (1 - hold))
    return lr * min(1.0, (step + 1) / warm) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x)))


class Stop:
    """SIGTERM and SIGINT end the loop after the running step, state saved."""

    def __init__(self):
        self.now = False
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, lambda *a: setattr(self, "now", True))


def save(path, state):
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)  # never leave half a file behind


def begin(work, threads):
    """Write our pid, so that somebody who measures can pause us (SIGSTOP)."""
    torch.set_num_threads(threads or max(1, os.cpu_count() // int(os.environ.get("WORLD_SIZE", 1))))
    if int(os.environ.get("RANK", 0)):
        return
    with open(os.path.join(work, "pid"), "w") as f:
        f.write(str(os.getpid()) + "\n")


def arguments(ap, minutes):
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--threads", type=int, default=0, help="0: all processors")
    ap.add_argument("--minutes", type=float, default=minutes)
    ap.add_argument("--until", help="HH:MM UTC; end then, instead of after --minutes")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--compile", action="store_true")
    ap.add_argument("--fresh", action="store_true", help="do not resume")


def autocast(device):
    return torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"))


def log(work, name, **kw):
    line = json.dumps({k: (round(v, 5) if isinstance(v, float) else v) for k, v in kw.items()})
    print(line, flush=True)
    with open(os.path.join(work, name), "a") as f:
        f.write(line + "\n")
