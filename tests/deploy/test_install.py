#!/usr/bin/env python3
"""make install in a checkout of a careful user (umask 077) who has pulled a model: with programs that are there already, so that
nothing is compiled. What docs/deployment.md says of building and installing is a dry run of make."""
import os
import re
import shutil
import subprocess
import sys
import tempfile

from tests import ROOT, check, read, run_tests


class Checkout:
    """The Makefile, two small programs as what was built, a model that ships and one that was pulled."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.at, self.old = self.folder.name, os.umask(0o077)
        shutil.copy(os.path.join(ROOT, "Makefile"), self.at)
        for name in ("latentd", "latentd-pull"):
            self.write("build/" + name, shutil.which("true"))
        for name in ("latentd/emoji/unet/config.json", "models--other--big/blobs/1"):
            self.write("models/" + name, os.path.join(ROOT, "Makefile"))
        return self

    def __exit__(self, *_):
        os.umask(self.old)
        self.folder.cleanup()

    def write(self, name, source):
        path = os.path.join(self.at, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.path.realpath(source), path)
        os.chmod(path, 0o700 if name.startswith("build") else 0o600)

    def make(self, *arguments):
        ran = subprocess.run(["make", *arguments], cwd=self.at, capture_output=True, text=True)
        check(ran.returncode == 0, arguments, ran.stdout + ran.stderr)
        return ran.stdout


def only_shipped_models_are_installed_and_all_can_read_them():
    with Checkout() as c:
        c.make("-s", "-o", "all", "install", "PREFIX=/usr", "DESTDIR=" + c.at + "/out")
        share = c.at + "/out/usr/share/latentd"
        check(os.listdir(share + "/models") == ["latentd"], os.listdir(share + "/models"))
        check(os.path.exists(share + "/models/latentd/emoji/unet/config.json"))
        for where, folders, files in os.walk(c.at + "/out/usr"):
            for name in [".", *files]:
                mode = os.stat(os.path.join(where, name)).st_mode & 0o777
                wanted = 0o755 if name == "." or where.endswith("/bin") else 0o644
                check(mode == wanted, os.path.join(where, name), oct(mode))


def the_commands_of_the_docs_build_and_then_install():
    """The first make compiles, the second one does not: it only installs, and is needs no nvcc."""
    line = re.search(r"^(make .*) && sudo (make .*?)(?: +#.*)?$", read("docs/deployment.md"), re.M)
    build, install = (words.split()[1:] for words in line.groups())
    with tempfile.TemporaryDirectory() as folder:
        def dry(*words):
            ran = subprocess.run(["make", "-n", "BUILD=" + folder, *words], cwd=ROOT, capture_output=True, text=True)
            check(ran.returncode == 0, words, ran.stderr)
            return ran.stdout
        links = f"-o {folder}/latentd "
        check(links in dry(*build, "NVCC=false"), "nothing is built by", build)
        said = dry(*install, "NVCC=false")
        check(links not in said and "install -s" in said, "what root does:", said[-1000:])


if __name__ == "__main__":
    sys.exit(run_tests([only_shipped_models_are_installed_and_all_can_read_them, the_commands_of_the_docs_build_and_then_install]))
