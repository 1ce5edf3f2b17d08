// Comfort only: every page works without this file.
"use strict";

const EVERY = 2000; // milliseconds between two looks at a running launch

function localTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    time.textContent = new Date(time.dateTime).toLocaleString(document.documentElement.lang, {
      dateStyle: "medium", timeStyle: "short",
    });
  }
}

function tick() {
  const shown = document.querySelector("[data-hours]");
  if (!shown) return;
  const from = Date.now(), hours = Number(shown.dataset.hours);
  setInterval(() => { shown.textContent = (hours + (Date.now() - from) / 3.6e6).toFixed(2); }, 5000);
}

async function follow(log) {
  const answer = await fetch(log.dataset.progress).catch(() => null); // the server may be away for a moment
  if (answer && answer.ok) {
    const launch = await answer.json();
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 20;
    if (log.textContent !== launch.log) log.textContent = launch.log;
    if (atEnd) log.scrollTop = log.scrollHeight;
    if (launch.state !== "running") return location.reload();
  }
  setTimeout(() => follow(log), EVERY);
}

function onlyOnce() {
  for (const form of document.forms) {
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "yes";
      setTimeout(() => { delete form.dataset.sent; }, 3000);
    });
  }
}

localTimes();
tick();
onlyOnce();
const log = document.querySelector("[data-progress]");
if (log) { log.scrollTop = log.scrollHeight; follow(log); }
document.querySelector(".refused[tabindex]")?.focus();
