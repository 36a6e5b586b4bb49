"""Take a picture of a real notebook in a real browser while its cell has work done on machines.

    sudo apt-get install -y chromium chromium-driver && pip install -e '.[bench,test]'
    python benchmarks/notebook.py       # writes benchmarks/notebook.png

The machines are a private sshd on loopback; the cells are run by pressing Shift-Enter, and the last
one is interrupted by pressing I twice. It then tells what that cell's tasks were settled as.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

CELLS = (
    """
import random, time
import executors
pool = executors.RemoteExecutor(["4/bigbox", "2/lab2"], title="farm")""",
    """
def simulate(seed):
    time.sleep(random.random())
    if seed % 20 == 0:
        print("seed", seed, "converged")
    return seed

sum(pool.map(simulate, range(100)))""",
    "pool",
    """
futures = [pool.submit(time.sleep, 100) for _ in range(9)]
futures[0].result()""",
    "print([future.cancelled() for future in futures])")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--window-size=980,740")
SERVER = ("--allow-root", "--no-browser", "--ip=127.0.0.1", "--port=8899",
          "--ServerApp.token=", "--ServerApp.password=", "--LabApp.news_url=None")


def write_book(path: str, options: list[str]) -> None:
    import nbformat
    book = nbformat.v4.new_notebook()
    hidden = ("import executors, functools\nexecutors.RemoteExecutor = functools.partial("
              f"executors.RemoteExecutor, ssh_options={options!r})")
    book.cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in (hidden, *CELLS)]
    nbformat.write(book, path)


def photograph(driver: Any, path: str) -> str:
    """Run the cells as a person does; return what the last one printed."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from test_executors import until

    def find(selector: str) -> Any:
        return driver.find_elements(By.CSS_SELECTOR, selector)

    def run() -> None:
        keys = ActionChains(driver)
        keys.key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()

    def outputs() -> list[str]:
        return [one.text for one in find(".jp-OutputArea-output")]

    until(lambda: len(find(".jp-CodeCell")) > len(CELLS), "the notebook")
    time.sleep(3)       # a dialog comes, or not
    for button in find(".jp-Dialog .jp-mod-accept"):
        button.click()
    time.sleep(3)
    find(".jp-CodeCell .cm-content")[0].click()
    run()
    run()
    run()
    until(lambda: any("seed 40 converged" in text for text in outputs()), "the half of the work")
    driver.execute_script("arguments[0].scrollIntoView()", find(".jp-CodeCell")[1])
    time.sleep(1)
    driver.save_screenshot(path)
    until(lambda: any(text == "4950" for text in outputs()), "the result")
    run()
    run()
    until(lambda: any(" 6 running" in text for text in outputs()), "the tasks")
    ActionChains(driver).send_keys(Keys.ESCAPE).send_keys("i").send_keys("i").perform()
    until(lambda: any("KeyboardInterrupt" in text for text in outputs()), "the interrupt")
    run()
    until(lambda: any("True" in text for text in outputs()[-1:]), "the last output")
    return outputs()[-1]


def main() -> None:
    from selenium import webdriver
    from test_executors import Sshd, until
    with tempfile.TemporaryDirectory() as folder, Sshd(["bigbox", "lab2"]) as sshd:
        write_book(os.path.join(folder, "farm.ipynb"), sshd.ssh_options)
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(HERE)}
        with open(os.path.join(folder, "log"), "w") as log:
            server = subprocess.Popen([sys.executable, "-m", "notebook", *SERVER], cwd=folder,
                                      env=environment, stdout=log, stderr=log)
        driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            until(lambda: "is running at" in open(log.name).read(), "the server")
            driver.get("http://127.0.0.1:8899/notebooks/farm.ipynb")
            print(photograph(driver, os.path.join(HERE, "notebook.png")))
        finally:
            driver.quit()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
