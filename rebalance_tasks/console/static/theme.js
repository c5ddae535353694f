// Before the first paint, so that no page flashes in the other colours. The system decides until somebody chooses.
const chosen = localStorage.getItem("theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
