// Keep the index and the workers up to date; the results stay as they are.
const state = document.getElementById("state");

async function refresh() {
  try {
    const answer = await fetch("/state");
    if (answer.ok) state.innerHTML = await answer.text();
    state.classList.toggle("stale", !answer.ok);
  } catch {
    state.classList.add("stale"); // the service is gone, or starts again
  }
  setTimeout(refresh, 1000);
}

setTimeout(refresh, 1000);
