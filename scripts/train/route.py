#!/usr/bin/env python3
"""Stage 6: point half of the heads of each cross attention at their own cell.

Stage 4 leaves the sketch of cell c in the text states at positions c mod 16.
That a 4x4 place should look at its own cell is slow to learn by descent; here
it is solved by least squares: queries and keys that say which cell they are,
values that are the cell's sketch. Run it on a UNet that has trained a little
(before that its queries do not know where they are), then train on.
"""
import argparse
import os

import torch

from captions import Captions
from common import CACHE, Ema, save
from train import SCHEDULE, build
from train_text import Heads


def solve(x, y, ridge=1e-2):
    """w with w @ x ~ y, both given as rows"""
    x, y = x.double(), y.double()
    a = x.T @ x / len(x)
    a += ridge * a.diagonal().mean() * torch.eye(len(a), dtype=a.dtype)
    return torch.linalg.solve(a, x.T @ y / len(x)).T.float()


@torch.no_grad()
def main():
    from diffusers import DDIMScheduler
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--sharp", type=float, default=8.0, help="score of the right cell")
    ap.add_argument("--out-scale", type=float, default=0.3)
    ap.add_argument("--count", type=int, default=96)
    ap.add_argument("--threads", type=int, default=1)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    path = os.path.join(a.work, "unet.pt")
    tok, text, unet = build(a.work)
    both = torch.nn.ModuleDict({"text": text, "unet": unet})
    both.load_state_dict(torch.load(path, map_location="cpu")["model"])
    pre = torch.load(os.path.join(a.work, "text.pt"), map_location="cpu")
    lat = torch.load(os.path.join(a.work, "latents.pt"))
    heads = Heads(text.config.hidden_size, len(lat))
    heads.load_state_dict(pre["heads"])
    cap = Captions(a.work)
    idx = torch.randperm(len(lat))[:a.count]
    ids = tok([cap.draw(int(i)) for i in idx], padding="max_length", max_length=77,
              truncation=True, return_tensors="pt").input_ids
    h = text(input_ids=ids).last_hidden_state
    first = (ids == tok.eos_token_id).int().argmax(1)
    pos = torch.arange(77)
    cell = torch.eye(16)
    want = cell[pos % 16][None] - 1 / 16
    want = want * (pos[None] >= first[:, None])[..., None]
    flat = h.reshape(-1, h.size(-1))
    wk = solve(flat, want.reshape(-1, 16))
    k = flat @ wk.T
    ok = (k.argmax(1) == (pos % 16).repeat(a.count))[(pos[None] >= first[:, None]).reshape(-1)]
    print("keys that know their cell: %.3f" % ok.float().mean())
    blocks = [m for n, m in unet.named_modules() if n.endswith("transformer_blocks.0")]
    ac = DDIMScheduler(**SCHEDULE).alphas_cumprod
    t = torch.randint(1, 1000, (a.count,))
    al, sg = ac[t].sqrt().view(-1, 1, 1, 1), (1 - ac[t]).sqrt().view(-1, 1, 1, 1)
    x = al * lat[idx] + sg * torch.randn_like(lat[idx])
    for m in blocks:  # in the order they run: each changes the next
        got = []
        hook = m.attn2.to_q.register_forward_hook(lambda mod, i, o: got.append(i[0]))
        unet(x, t, encoder_hidden_states=h)
        hook.remove()
        q_in = got[0].reshape(-1, got[0].size(-1))
        wq = solve(q_in, (cell - 1 / 16).repeat(a.count, 1))
        q = q_in @ wq.T
        right = (q.argmax(1) == torch.arange(16).repeat(a.count)).float().mean()
        n, d = m.attn2.heads, m.attn2.to_q.weight.size(0) // m.attn2.heads
        # Score = q.k / sqrt(d); the right cell should lead by about --sharp.
        lead = (q.reshape(a.count, 16, 16).diagonal(dim1=1, dim2=2).mean()
                * k[(want.reshape(-1, 16).max(1).values > 0)].max(1).values.mean())
        s = (a.sharp * d ** 0.5 / lead).sqrt()
        v = heads.cell.weight
        v = v / (flat @ v.T).std()
        for j in range((64 + d - 1) // d):
            r = slice(j * d, (j + 1) * d)
            m.attn2.to_q.weight[r] = 0
            m.attn2.to_k.weight[r] = 0
            m.attn2.to_v.weight[r] = 0
            m.attn2.to_q.weight[j * d:j * d + 16] = s * wq
            m.attn2.to_k.weight[j * d:j * d + 16] = s * wk
            part = v[j * d:(j + 1) * d]
            m.attn2.to_v.weight[j * d:j * d + len(part)] = part
            o = torch.nn.init.orthogonal_(torch.empty(m.attn2.to_out[0].weight.size(0), d))
            m.attn2.to_out[0].weight[:, r] = a.out_scale * o
        print("queries that know their cell: %.3f, lead %.2f" % (right, lead))
    save(path, dict(model=both.state_dict(), opt=None, ema=Ema(both.parameters(), 0.998).state(),
                    step=0, used=0.0))


if __name__ == "__main__":
    main()
