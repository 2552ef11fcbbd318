"""Reads a Dockerfile and carries out the steps of one target without an engine: each stage is a stack of overlay mounts over
a root that debootstrap made, RUN is a chroot. What it does not know it refuses. Needs root, in a mount namespace of its own.
"""
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import time

KNOWN = "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN STOPSIGNAL USER VOLUME WORKDIR".split()
WEEK = 7 * 24 * 3600
DEVICES = ("null", "zero", "random", "urandom")


def bind(source, target):
    """SOURCE is seen at TARGET, which is made where it is not there."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        with open(target, "w", encoding="utf-8"):
            pass
    subprocess.run(["mount", "--bind", source, target], check=True)


def parse(text):
    """The instructions in order, as (WORD, rest)."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    steps = []
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, rest = line.strip().split(None, 1)
            if word not in KNOWN:
                raise ValueError(f"unknown instruction {word}")
            steps.append((word, rest.strip()))
    return steps


def stages(steps):
    """(global ARGs, [(base, name, steps)])."""
    arguments, found = {}, []
    for word, rest in steps:
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+)(?: AS (\S+))?", rest).groups()
            found.append((expand(base, arguments), name, []))
        elif not found:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            found[-1][2].append((word, rest))
    return arguments, found


def expand(text, env):
    return re.sub(r"\$\{?(\w+)\}?", lambda m: env.get(m[1], ""), text)


def words(text):
    """The words of an exec form (JSON) or of plain words."""
    return json.loads(text) if text.startswith("[") else text.split()


def digest(*parts):
    h = hashlib.sha256()
    for part in parts:
        h.update(repr(part).encode())
    return h.hexdigest()[:16]


def tree_digest(path):
    """Of names, modes and contents below PATH."""
    h = hashlib.sha256()
    names = [path] if os.path.isfile(path) else sorted(glob.glob(path + "/**", recursive=True, include_hidden=True))
    for name in names:
        if os.path.isfile(name) and not os.path.islink(name):
            h.update(f"{os.path.relpath(name, path)} {os.stat(name).st_mode & 0o777}".encode())
            with open(name, "rb") as file:
                h.update(file.read())
    return h.hexdigest()


class Image:
    """A stage that was carried out: its layers, and what its instructions say about running it."""

    def __init__(self, layers, key):
        self.layers, self.key = layers, key  # layers: folders, the lowest first
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.arguments = {}
        self.user, self.workdir = "root", "/"
        self.entrypoint, self.health, self.exposed, self.volumes = [], [], [], []

    def variables(self):
        return {**self.arguments, **self.env}


class Builder:
    """CONTEXT is the folder of the Dockerfile; BASES makes a root of an image's name; everything is kept below CACHE."""

    def __init__(self, text, context, cache, base):
        self.globals, self.stages = stages(parse(text))
        self.context, self.cache, self.base = context, cache, base
        self.made, self.used, self.count = {}, set(), 0
        os.makedirs(os.path.join(cache, "layers"), exist_ok=True)
        self.scratch = os.path.join(cache, "scratch")
        os.makedirs(self.scratch, exist_ok=True)

    def mount(self, layers, upper=None):
        """LAYERS one over the other, writes into UPPER. The folder where they are seen."""
        self.count += 1
        at, work = (os.path.join(self.scratch, f"{kind}-{os.getpid()}-{self.count}") for kind in ("root", "work"))
        for path in (at, work):
            os.makedirs(path)
        options = "lowerdir=" + ":".join(reversed(layers))
        if upper:
            options += f",upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at], check=True)
        subprocess.run(["mount", "-t", "proc", "proc", f"{at}/proc"], check=True)
        for name in DEVICES:
            bind(f"/dev/{name}", f"{at}/dev/{name}")
        return at

    def unmount(self, at):
        subprocess.run(["umount", "-R", at], check=True)
        os.rmdir(at)

    def layer(self, image, step, key, act):
        """Another layer over IMAGE, made by ACT(root); the one of an earlier run where KEY is the same."""
        kept = os.path.join(self.cache, "layers", digest(image.key, key))
        done = kept + ".done"
        fetches = "apt-get" in step[1] or ".sh" in step[1]
        if not os.path.exists(done) or (fetches and time.time() - os.stat(done).st_mtime > WEEK):
            shutil.rmtree(kept, ignore_errors=True)
            os.makedirs(kept)
            print(f"  {step[0]} {step[1][:100]}", flush=True)
            at = self.mount(image.layers, kept)
            try:
                act(at)
            finally:
                self.unmount(at)
            with open(done, "w", encoding="utf-8") as file:
                file.write(str(time.time()))
        self.used.add(kept)
        with open(done, encoding="utf-8") as file:
            image.key = digest(image.key, key, file.read())
        image.layers = image.layers + [kept]

    def clean(self):
        """Removes what this run left beside the layers, and layers that no run of two days has used. Nothing is mounted
        below them: mounts end with the namespace, and a folder that is one is not empty."""
        for path in glob.glob(os.path.join(self.scratch, f"*-{os.getpid()}-*")):
            if os.path.basename(path).startswith("root-"):
                os.rmdir(path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        for path in self.used:
            os.utime(path)
        for path in glob.glob(os.path.join(self.cache, "layers", "*.done")):
            kept = path[:-5]
            if not os.path.exists(kept) or time.time() - os.stat(kept).st_mtime > 2 * 24 * 3600:
                shutil.rmtree(kept, ignore_errors=True)
                os.unlink(path)

    def run(self, image, rest):
        mounts = re.findall(r"--mount=type=cache,target=(\S+)", rest)
        command = re.sub(r"--mount=\S+\s*", "", rest)
        if "--mount" in command or command.startswith("["):
            raise ValueError(f"unknown form of RUN: {rest}")
        env = {**image.variables(), "HOME": "/root"}

        def act(at):
            for target in mounts:
                source = os.path.join(self.cache, "mounts", digest(target))
                os.makedirs(source, exist_ok=True)
                bind(source, at + target)
            bind("/etc/resolv.conf", at + "/etc/resolv.conf")
            log = os.path.join(self.scratch, "run.log")
            with open(log, "wb") as out:
                status = subprocess.run(
                    ["chroot", at, "/bin/sh", "-c", f"cd {image.workdir} && {command}"], env=env, stdin=subprocess.DEVNULL,
                    stdout=out, stderr=subprocess.STDOUT, check=False).returncode
            if status:
                with open(log, encoding="utf-8", errors="replace") as out:
                    raise RuntimeError(f"status {status} of RUN {command}\n" + out.read()[-4000:])

        self.layer(image, ("RUN", rest), (rest, sorted(env.items()), image.workdir), act)

    def copy(self, image, rest):
        found = re.match(r"--from=(\S+)\s+", rest)
        names = words(rest[found.end():] if found else rest)
        if not names or names[0].startswith("--"):
            raise ValueError(f"unknown form of COPY: {rest}")
        target = os.path.normpath(os.path.join(image.workdir, names[-1]))
        slash = names[-1].endswith("/") or names[-1] == "/"
        source = self.build(found[1]) if found else None
        at_source = self.mount(source.layers) if source else self.context
        sources = [os.path.join(at_source, name.lstrip("/")) for name in names[:-1]]
        key = source.key if source else [tree_digest(path) for path in sources]

        def act(at):
            for path in sources:
                goal = at + target
                if os.path.isdir(path):
                    os.makedirs(goal, exist_ok=True)
                    subprocess.run(["cp", "-a", "--no-preserve=ownership", path + "/.", goal], check=True)
                else:
                    goal = os.path.join(goal, os.path.basename(path)) if slash or len(sources) > 1 else goal
                    os.makedirs(os.path.dirname(goal), exist_ok=True)
                    subprocess.run(["cp", "-a", "--no-preserve=ownership", path, goal], check=True)

        try:
            for path in sources:
                if not os.path.exists(path):
                    raise RuntimeError(f"COPY {rest}: there is no {path}")
            self.layer(image, ("COPY", rest), (rest, key), act)
        finally:
            if source:
                self.unmount(at_source)

    def build(self, name):
        """The stage NAME."""
        if name in self.made:
            return self.made[name]
        base, _, steps = next(stage for stage in self.stages if stage[1] == name)
        if any(stage[1] == base for stage in self.stages):
            parent = self.build(base)
            image = Image(parent.layers, parent.key)
            image.env = dict(parent.env)
        else:
            root, key = self.base(base)
            image = Image([root], key)
        for word, rest in steps:
            self.step(image, word, rest)
        self.made[name] = image
        return image

    def step(self, image, word, rest):
        if word == "RUN":
            self.run(image, rest)
        elif word == "COPY":
            self.copy(image, rest)
        elif word == "ARG":
            name, _, value = rest.partition("=")
            image.arguments[name] = value if "=" in rest else self.globals.get(name, "")
        elif word == "ENV":
            for pair in rest.split():
                key, _, value = pair.partition("=")
                image.env[key] = expand(value, image.variables())
        elif word == "WORKDIR":
            image.workdir = os.path.normpath(os.path.join(image.workdir, rest))
            self.layer(image, (word, rest), image.workdir, lambda at: os.makedirs(at + image.workdir, exist_ok=True))
        elif word == "USER":
            image.user = rest
        elif word == "ENTRYPOINT":
            image.entrypoint = words(rest)
        elif word == "HEALTHCHECK":
            image.health = words(re.search(r"CMD (.*)", rest)[1])
        elif word == "EXPOSE":
            image.exposed += words(rest)
        elif word == "VOLUME":
            image.volumes += words(rest)
        else:
            raise ValueError(f"{word} is not carried out here")
