"""Evidence, Allure results, JUnit and the HTML report."""
